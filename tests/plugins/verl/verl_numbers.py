"""What verl's own functions say of random rollouts, as JSON. Run with verl's Python: `python verl_numbers.py SEED...`.

Rollouts stand in groups; each has two replies with an observation between them. Everything is float64.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

CLIP = {"low": 0.2, "high": 0.28, "dual": 3.0}
GSPO = {"low": 0.02, "high": 0.04}
LENGTH = 40
VALUE_CLIP = 0.2


def inputs(seed: int) -> dict[str, Any]:
    """Lengths of the replies of each rollout, and the arrays (rollouts, longest); what stands outside the replies is padding."""
    rng = np.random.default_rng(seed)
    group = [0, 0, 0, 1, 1, 1, 1, 2, 2]
    replies = rng.integers(1, 6, (len(group), 2))
    gap = rng.integers(1, 4, len(group))
    longest = int((replies.sum(1) + gap).max())
    mask = np.zeros((len(group), longest))
    for row, ((one, two), between) in enumerate(zip(replies, gap, strict=True)):
        mask[row, :one] = 1
        mask[row, one + between : one + between + two] = 1
    shape = mask.shape
    old = rng.uniform(-4, -0.1, shape)
    return {
        "group": group,
        "replies": replies.tolist(),
        "mask": mask.tolist(),
        "reward": rng.choice([0.0, 0.25, 0.5, 1.0], len(group)).tolist(),
        "values": rng.normal(0, 1, shape).tolist(),
        "predicted": rng.normal(0, 1, shape).tolist(),
        "returns": rng.normal(0, 1, shape).tolist(),
        "old": old.tolist(),
        "now": (old + rng.normal(0, 0.3, shape)).tolist(),
        "recorded": (old + rng.normal(0, 0.5, shape)).tolist(),
        "reference": (old + rng.normal(0, 0.7, shape)).tolist(),
        "advantage": rng.normal(0, 1, len(group)).tolist(),
    }


def outputs(given: dict[str, Any]) -> dict[str, Any]:
    """By name; arrays (rollouts, longest), and the gradient of a loss with respect to `now`."""
    import torch
    from verl.trainer.ppo import core_algos as verl
    from verl.trainer.ppo import rollout_corr_helper as correction
    from verl.workers.config import ActorConfig

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(given[name], dtype=torch.float64)

    mask, reward = tensor("mask"), tensor("reward")
    last = torch.zeros_like(mask)
    for row in range(len(mask)):
        last[row, int(mask[row].nonzero()[-1])] = reward[row]
    group: Any = np.array(given["group"])
    found: dict[str, Any] = {}
    found["gae"], found["gae_returns"] = verl.compute_gae_advantage_return(last, tensor("values"), mask, 0.97, 0.9)  # type: ignore[arg-type]
    found["grpo"] = verl.compute_grpo_outcome_advantage(last, mask, group)[0]
    found["dr_grpo"] = verl.compute_grpo_outcome_advantage(last, mask, group, norm_adv_by_std_in_grpo=False)[0]
    plain: Any = SimpleNamespace(gamma=1.0)
    found["reinforce_pp"] = verl.compute_reinforce_plus_plus_outcome_advantage(last, mask, config=plain)[0]
    found["reinforce_pp_baseline"] = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(last, mask, group)[0]
    found["rloo"] = verl.compute_rloo_outcome_advantage(last, mask, group)[0]
    found["opo"] = verl.compute_opo_outcome_advantage(last, mask, group)[0]

    log_ratio = tensor("old") - tensor("recorded")
    for name, level, threshold in (
        ("tis", "token", 2.0),
        ("tis_attempt", "sequence", 2.0),
        ("icepop", "token", "0.5_2.0"),
    ):
        found[name] = correction.compute_rollout_correction_weights(log_ratio, mask, level, threshold)[0]
    for name, kind in (("mask_mean", "seq_mean_k1"), ("mask_sum", "seq_sum_k1")):
        found[name] = correction.compute_rollout_rejection_mask(log_ratio, mask, kind, "0.8_1.25")[0]

    advantage = tensor("advantage")[:, None].expand_as(mask)
    modes = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean", "constant_length": "seq-mean-token-sum-norm"}
    for loss, clip in (("vanilla", CLIP), ("cispo", CLIP), ("gspo", GSPO)):
        for weight, mode in modes.items():
            for corrected in (False, True):
                config: Any = ActorConfig(
                    strategy="fsdp2",
                    rollout_n=1,
                    use_dynamic_bsz=True,
                    clip_ratio=clip["low"],
                    clip_ratio_low=clip["low"],
                    clip_ratio_high=clip["high"],
                    clip_ratio_c=clip.get("dual", 3.0),
                    optim=SimpleNamespace(),  # type: ignore[arg-type]
                )
                config.global_batch_info["loss_scale_factor"] = LENGTH
                now = tensor("now").requires_grad_()
                weights = found["tis"] if corrected else None
                value, _ = verl.get_policy_loss_fn(loss)(tensor("old"), now, advantage, mask, mode, config, weights)
                (gradient,) = torch.autograd.grad(value, now)
                found[f"{loss}.{weight}{'.corrected' * corrected}"] = {"loss": float(value.detach()), "gradient": gradient}
    for name in ("k1", "k2", "k3"):
        now = tensor("now").requires_grad_()
        value = (verl.kl_penalty(now, tensor("reference"), name) * mask).sum() / mask.sum()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value, now)
        found[f"kl.{name}"] = {"loss": float(value.detach()), "gradient": gradient}
    predicted = tensor("predicted").requires_grad_()
    value, _ = verl.compute_value_loss(predicted, tensor("returns"), tensor("values"), mask, VALUE_CLIP)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(value, predicted)
    found["value"] = {"loss": float(value.detach()), "gradient": gradient}

    def plainly(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plainly(each) for key, each in value.items()}
        return value if isinstance(value, float) else (value * mask).tolist()

    return {name: plainly(each) for name, each in found.items()}


if __name__ == "__main__":
    cases = [{"seed": seed, "inputs": (given := inputs(seed)), "outputs": outputs(given)} for seed in map(int, sys.argv[1:])]
    json.dump(cases, sys.stdout)
