"""What verl 0.9.1 computes as well, equal to 1e-6 in float64: recorded for one seed, asked of verl itself by `make test-verl`.

Where ours differs on purpose a test says so by name; inputs are chosen so that these cases do not occur in the others.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from verl_numbers import CLIP, GSPO, LENGTH, VALUE_CLIP, inputs
from verl_world import PYTHON

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import Correction, LossSettings
from agentlightning.rl.advantage import Estimate
from agentlightning.rl.advantage.gae import gae
from agentlightning.rl.advantage.grpo import dr_grpo, grpo
from agentlightning.rl.advantage.opo import opo
from agentlightning.rl.advantage.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from agentlightning.rl.advantage.rloo import rloo
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.correction.icepop import IcePop
from agentlightning.rl.correction.sequence_masking import SequenceMasking
from agentlightning.rl.correction.tis import TruncatedImportanceSampling
from agentlightning.rl.credit.identical import identical
from agentlightning.rl.loss import CISPO, PPOClip
from agentlightning.rl.loss import GSPO as GSPOLoss
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.types import Trajectory, floats
from agentlightning_torch.forward import Scores
from agentlightning_torch.losses.kl import kl_term
from agentlightning_torch.losses.value import value_term
from agentlightning_torch.update import Update

RECORDED = Path(__file__).with_name("verl_numbers.json")
PROGRAM = Path(__file__).with_name("verl_numbers.py")
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}
FRESH = pytest.param("fresh", marks=pytest.mark.skipif(PYTHON is None, reason="asks verl itself: make test-verl"))


@cache
def cases(which: str) -> list[dict[str, Any]]:
    """Of each seed what verl said."""
    if which == "recorded":
        return json.loads(RECORDED.read_text())
    assert PYTHON is not None
    seeds = [str(seed) for seed in range(20)]
    ran = subprocess.run([PYTHON, str(PROGRAM), *seeds], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def of(which: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for case in cases(which):
        yield inputs(case["seed"]), case["outputs"]


def flat(given: dict[str, Any], rows: Any) -> np.ndarray:
    """(tokens,) what stands at the replies, rollout after rollout."""
    return np.asarray(rows)[np.array(given["mask"]) == 1]


def trajectories(given: dict[str, Any]) -> list[Trajectory]:
    """Of two turns each, with the recorded log-probabilities."""
    recorded, found, at = flat(given, given["recorded"]), list[Trajectory](), 0
    for index, (replies, group) in enumerate(zip(given["replies"], given["group"], strict=True)):
        turns = [(np.full(length, 2 + turn), (9,)) for turn, length in enumerate(replies)]
        transitions = conversation([1], turns, id=str(index))
        for turn, length in enumerate(replies):
            transitions[turn] = structs.replace(transitions[turn], logprobs=floats(recorded[at : at + length]))
            at += length
        found.append(trajectory(index, *transitions, group=str(group), reward=given["reward"][index]))
    return found


ADVANTAGES: dict[str, Callable[..., Any]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "opo": opo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


@pytest.mark.parametrize("which", ["recorded", FRESH])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_those_of_verl(name: str, which: str) -> None:
    for given, said in of(which):
        rollouts = RolloutArrays.of(trajectories(given))
        made = rollouts.per_token(ADVANTAGES[name](rollouts, identical(rollouts)))
        quiet = [len({r for r, g in zip(given["reward"], given["group"], strict=True) if g == group}) == 1 for group in given["group"]]
        expected = np.where(np.array(quiet)[:, None] & (name == "reinforce_pp_baseline"), 0.0, said[name])  # tested below
        expected = np.where(np.array(quiet)[:, None] & (name == "opo"), 0.0, expected)  # 1e-17 there
        np.testing.assert_allclose(made, flat(given, expected), **TOLERANCE)


@pytest.mark.parametrize("which", ["recorded", FRESH])
def test_generalised_advantages_and_their_returns_are_those_of_verl(which: str) -> None:
    for given, said in of(which):
        rollouts = RolloutArrays.of(trajectories(given))
        object.__setattr__(rollouts, "values", flat(given, given["values"]))
        made = gae(rollouts, identical(rollouts), gamma=0.97, lam=0.9)
        np.testing.assert_allclose(made.target, flat(given, said["gae_returns"]), **TOLERANCE)
        np.testing.assert_allclose(made.advantage, flat(given, said["gae"]), **TOLERANCE)


CORRECTIONS: dict[str, Correction] = {
    "tis": TruncatedImportanceSampling(),
    "tis_attempt": TruncatedImportanceSampling(level="attempt"),
    "icepop": IcePop(),
    "mask_mean": SequenceMasking(low=0.8, high=1.25, level="attempt"),
    "mask_sum": SequenceMasking(low=0.8, high=1.25, level="attempt", mean=False),
}


@pytest.mark.parametrize("which", ["recorded", FRESH])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_are_those_of_verl(name: str, which: str) -> None:
    for given, said in of(which):
        owner = np.repeat(np.arange(len(given["group"])), np.array(given["mask"]).sum(1).astype(int))
        log_ratio = flat(given, given["old"]) - flat(given, given["recorded"])
        np.testing.assert_allclose(CORRECTIONS[name].weights(log_ratio, owner), flat(given, said[name]), **TOLERANCE)


LOSSES: dict[str, LossSettings] = {
    "vanilla": PPOClip(clip_low=CLIP["low"], clip_high=CLIP["high"], dual_clip=CLIP["dual"]),
    "cispo": CISPO(clip_low=CLIP["low"], clip_high=CLIP["high"]),
    "gspo": GSPOLoss(clip_low=GSPO["low"], clip_high=GSPO["high"], sequence="attempt"),
}


def update(batch: Batch, loss: LossSettings, old: np.ndarray, now: torch.Tensor) -> Update:
    """The second update of a step, whose first one turned `old` into `now`; both are (tokens of the batch,)."""
    index = np.flatnonzero(batch.trained)
    nothing = torch.zeros(len(index), 1)

    def score(rollouts: Sequence[int] | None, entropy: bool) -> Iterator[tuple[Scores, int]]:
        values = now if made.norms else torch.from_numpy(old)
        for some in np.array_split(index, 3):  # as packs would
            yield Scores(some, values[torch.from_numpy(some)], nothing[: len(some), 0], nothing[: len(some)]), len(some)

    made = Update(batch, loss, score, nullcontext)
    made.prepared = True
    made.old_logprobs = made._pass(None)
    made._correct(index)
    made.norms.append(1.0)
    return made


@pytest.mark.parametrize("which", ["recorded", FRESH])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("loss_aggregation", ["token_mean", "sequence_mean", "constant_length"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_weights_and_corrections_are_those_of_verl(name: str, loss_aggregation: Any, corrected: bool, which: str) -> None:
    for given, said in of(which):
        examples = trajectories(given)
        advantages = [np.full(2, each) for each in given["advantage"]]
        batch = make_batch(
            examples, advantages, loss_aggregation=loss_aggregation, length=LENGTH if loss_aggregation == "constant_length" else None
        )
        place = batch.by_transition(np.arange(len(batch), dtype=np.float64))
        order = np.concatenate([place[t.completion_id] for each in examples for t in each.transitions]).astype(int)
        recorded, old, start = (np.full(len(batch), np.nan) for _ in range(3))
        for array, key in ((recorded, "recorded"), (old, "old"), (start, "now")):
            array[order] = flat(given, given[key])
        object.__setattr__(batch, "rollout_logprobs", recorded)  # float64, where a record has float32
        now = torch.from_numpy(start).requires_grad_()
        loss = LOSSES[name]
        if corrected:
            loss = type(loss)(**{**{f: getattr(loss, f) for f in loss.__dataclass_fields__}, "correction": TruncatedImportanceSampling()})
        made = update(batch, loss, old, now)
        made.gradient(0)
        expected = said[f"{name}.{loss_aggregation}{'.corrected' * corrected}"]
        assert made.sums["loss"] == pytest.approx(expected["loss"], rel=1e-6, abs=1e-9)
        assert now.grad is not None
        np.testing.assert_allclose(now.grad.numpy()[order], flat(given, expected["gradient"]), **TOLERANCE)


@pytest.mark.parametrize("which", ["recorded", FRESH])
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimates_of_the_divergence_are_those_of_verl(name: str, which: str) -> None:
    for given, said in of(which):
        now = torch.from_numpy(flat(given, given["now"])).requires_grad_()
        value = kl_term(name, now, torch.from_numpy(flat(given, given["reference"]))).mean()
        (gradient,) = torch.autograd.grad(value, now)
        assert value.item() == pytest.approx(said[f"kl.{name}"]["loss"], rel=1e-6)
        np.testing.assert_allclose(gradient.numpy(), flat(given, said[f"kl.{name}"]["gradient"]), **TOLERANCE)


@pytest.mark.parametrize("which", ["recorded", FRESH])
def test_the_clipped_loss_of_values_is_that_of_verl(which: str) -> None:
    for given, said in of(which):
        predicted = torch.from_numpy(flat(given, given["predicted"])).requires_grad_()
        before, target = (torch.from_numpy(flat(given, given[key])) for key in ("values", "returns"))
        value = value_term(predicted, before, target, VALUE_CLIP).mean()
        (gradient,) = torch.autograd.grad(value, predicted)
        assert value.item() == pytest.approx(said["value"]["loss"], rel=1e-6)
        np.testing.assert_allclose(gradient.numpy(), flat(given, said["value"]["gradient"]), **TOLERANCE)


@pytest.mark.skipif(PYTHON is None, reason="asks verl itself: make test-verl")
def test_what_is_recorded_is_what_verl_says() -> None:
    for case, fresh in zip(cases("recorded"), cases("fresh"), strict=False):
        assert case["seed"] == fresh["seed"]
        for name, said in case["outputs"].items():
            again = fresh["outputs"][name]
            both = (said, again) if isinstance(said, list) else (said["gradient"], again["gradient"])
            np.testing.assert_allclose(*both, rtol=1e-9, atol=1e-12)


def test_a_group_of_one_has_advantage_zero_where_verl_gives_its_reward() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[0.7, 1.0, 0.0], group=[0, 1, 1], rollout=[0, 1, 2])
    for estimator in (grpo, dr_grpo, rloo, opo, reinforce_pp_baseline):
        assert estimator(rollouts, identical(rollouts))[0] == 0.0


def test_a_group_that_noise_alone_tells_apart_has_advantage_zero_where_verl_divides_by_the_noise() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[0.5, 0.5 + 1e-7, 0.5], group=[0, 0, 0], rollout=[0, 1, 2])
    for estimator in (grpo, dr_grpo, rloo, opo, reinforce_pp, reinforce_pp_baseline):
        assert not estimator(rollouts, identical(rollouts)).any()


def test_rollouts_are_the_unit_of_a_group_where_rows_are_in_verl() -> None:
    """A rollout of many transitions counts once in mean and deviation, and one that never called the model counts as well."""
    short = RolloutArrays.from_arrays(returns=[1.0, 0.0, 0.0], group=[0, 0, 0], rollout=[0, 1])
    long = RolloutArrays.from_arrays(returns=[1.0, 0.0, 0.0], group=[0, 0, 0], rollout=[0, 1, 1, 1, 1])
    for estimator in (grpo, dr_grpo, rloo):
        one, many = (estimator(each, identical(each)) for each in (short, long))
        assert one.tolist() == many[:2].tolist()
        assert one[0] == pytest.approx({grpo: 2 / 3 / np.sqrt(1 / 3), dr_grpo: 2 / 3, rloo: 1.0}[estimator], rel=1e-5)


def test_groups_without_signal_have_advantage_zero_where_verl_whitens_them() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[1.0, 0.0, 1.0, 1.0], group=[0, 0, 1, 1], rollout=[0, 0, 0, 1, 2, 3])
    made = reinforce_pp_baseline(rollouts, identical(rollouts))
    assert isinstance(made, np.ndarray)
    assert made[4:].tolist() == [0.0, 0.0]
    assert made[0] > 0 > made[3]
    assert not isinstance(made, Estimate)
