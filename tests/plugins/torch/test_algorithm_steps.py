"""One step of each algorithm: its gradients are those of the published formula, by autograd over plain rows.

The rollouts are written by hand, so the advantages of the formula are too. `test_algorithms.py` has whole runs that learn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentlightning.config.models import ModelFiles
from agentlightning.config.parts import Part
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.rl.marks import Needs
from agentlightning.types import Trajectory
from agentlightning_torch.trainer import Settings, TorchTrainer
from world import two_groups

GROUPS = "gggghhh"
REWARDS = np.array([0.1, 0.9, 0.4, 0.6, 0.2, 1.0, 0.35])
VALUE = 0.3
"""What the critic expects everywhere."""
STEP = 0.3
"""Learning rate of the plain steps between two gradients."""


ROLLOUTS = two_groups(REWARDS)
LENGTHS = np.array([[len(t.response_ids) for t in rollout.transitions] for rollout in ROLLOUTS])  # (rollouts, turns)


@dataclass
class OneStep:
    """The session of a single step over the rollouts above, with a trainer and nothing else."""

    trainer: TorchTrainer
    max_staleness: int = 0

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def steps(self) -> Iterator[int]:
        yield 0

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        return ROLLOUTS

    async def values(self, batch: Batch) -> Any:
        return await self.trainer.values(batch)

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        return (await self.trainer.step(batch, loss))[1]

    async def finish_step(self, *_: Any) -> None:
        pass


@asynccontextmanager
async def training(model: ModelFiles, *, critic: bool) -> AsyncIterator[tuple[TorchTrainer, list[dict[str, torch.Tensor]]]]:
    """A trainer in float64 whose optimiser takes plain steps, and the gradients of these."""
    trainer = await TorchTrainer.create(model, Settings(device="cpu", dtype="float64", critic=critic), {})
    gradients: list[dict[str, torch.Tensor]] = []
    if trainer.critic is not None:
        with torch.no_grad():
            trainer.critic.outer.bias.fill_(VALUE)

    def step(lr: float) -> float:
        gradients.append({name: p.grad.clone() for name, p in trainer.weights.model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for name, p in trainer.weights.model.named_parameters():
                p -= STEP * gradients[-1][name]
        trainer.optimizer.zero()
        return 0.0

    trainer.optimizer.step = step  # type: ignore[method-assign]
    try:
        yield trainer, gradients
    finally:
        await trainer.close()


def logprobs(model: Any) -> list[list[torch.Tensor]]:
    """Of each rollout and turn, the log-probabilities of the reply; each turn is a row of its own."""
    scores: list[list[torch.Tensor]] = []
    for rollout in ROLLOUTS:
        scores.append([])
        for t in rollout.transitions:
            row = torch.tensor([*t.prompt_ids.tolist(), *t.response_ids.tolist()])
            logits = model(input_ids=row[None]).logits[0, :-1] / t.temperature
            scores[-1].append(logits.log_softmax(-1).gather(1, row[1:, None])[len(t.prompt_ids) - 1 :, 0])
    return scores


def of_turns(per_rollout: np.ndarray, turns: Sequence[float] = (1, 1)) -> list[list[np.ndarray]]:
    """Advantages of tokens: of each rollout one number, times a factor of each turn."""
    return [
        [np.full(length, a * turns[turn]) for turn, length in enumerate(lengths)] for a, lengths in zip(per_rollout, LENGTHS, strict=True)
    ]


def within_groups(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    groups = np.array(list(GROUPS))
    return np.concatenate([of(REWARDS[groups == group]) for group in "gh"])


def grpo(r: np.ndarray) -> np.ndarray:
    return (r - r.mean()) / (r.std(ddof=1) + 1e-6)


def rloo(r: np.ndarray) -> np.ndarray:
    return np.array([r[k] - np.delete(r, k).mean() for k in range(len(r))])


def gae(lam: float) -> list[list[np.ndarray]]:
    """With one value everywhere, only the last token's delta is not 0."""
    flat = [(r - VALUE) * lam ** np.arange(sum(lengths))[::-1] for r, lengths in zip(REWARDS, LENGTHS, strict=True)]
    every = np.concatenate(flat)
    white = [(a - every.mean()) / every.std(ddof=1) for a in flat]
    return [np.split(a, np.cumsum(lengths)[:-1]) for a, lengths in zip(white, LENGTHS, strict=True)]


def learned(lam: float) -> list[list[np.ndarray]]:
    """G_0 = V + lam (R - V) and G_1 = R, each less the mean of the other rollouts of the group: the first is lam times the second."""
    return of_turns(within_groups(rloo), (lam, 1))


def clipped(low: float, high: float, dual: float = 3.0) -> Callable[..., torch.Tensor]:
    def term(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        rho = torch.exp(lp - old)
        surrogate = torch.minimum(rho * a, rho.clamp(1 - low, 1 + high) * a)
        return -torch.where(a < 0, torch.maximum(surrogate, dual * a), surrogate)

    return term


def cispo(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return -torch.exp(lp - old).clamp(0, 1.28).detach() * a * lp


def gspo(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """One ratio for the reply; the mean over its tokens, repeated, sums to what the paper has for the reply."""
    rho = torch.exp((lp - old).mean())
    return -torch.minimum(rho * a, rho.clamp(1 - 3e-4, 1 + 4e-4) * a)


def likelihood(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return -a * lp


SHARE = 1 / (len(GROUPS) * LENGTHS.sum(1))  # (rollouts,) the weight of a token: each rollout has the same
CHOSEN = np.array([0, 1, 0, 1, 0, 1, 1.0])  # the best two of each group
Algorithm = tuple[dict[str, Any], list[list[np.ndarray]], Callable[..., torch.Tensor], np.ndarray]
ALGORITHMS: dict[str, Algorithm] = {
    "grpo": (
        {"advantage": "grpo", "loss": {"name": "ppo_clip", "minibatches": 2}}, of_turns(within_groups(grpo)), clipped(0.2, 0.28), SHARE
    ),
    "rloo": (
        {"advantage": "rloo", "loss": {"name": "ppo_clip", "minibatches": 2}}, of_turns(within_groups(rloo)), clipped(0.2, 0.28), SHARE
    ),
    "cispo": ({"advantage": "rloo", "loss": {"name": "cispo", "minibatches": 2}}, of_turns(within_groups(rloo)), cispo, SHARE),
    "gspo": ({"advantage": "grpo", "loss": {"name": "gspo", "minibatches": 2}}, of_turns(within_groups(grpo)), gspo, SHARE),
    "ppo": (
        {"advantage": {"name": "gae", "lam": 0.9}, "loss": {"name": "ppo_clip", "epochs": 2, "minibatches": 2}},
        gae(0.9), clipped(0.2, 0.28), SHARE,
    ),
    "learned": (
        {"credit": {"name": "learned", "lam": 0.5}, "advantage": "rloo", "loss": {"name": "ppo_clip", "minibatches": 2}},
        learned(0.5), clipped(0.2, 0.28), SHARE,
    ),
    "rft": (
        {"name": "rft", "min_reward": 0.3, "best": 2, "minibatches": 2},
        of_turns(CHOSEN), likelihood, np.full(len(GROUPS), 1 / (CHOSEN @ LENGTHS.sum(1))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
async def test_the_gradients_of_a_step_are_those_of_the_formula(name: str, model: ModelFiles) -> None:
    table, advantages, term, weights = ALGORITHMS[name]
    algorithm = Part.parse("algorithms", {"name": "lightning", **table}, "algorithm").make()
    loss = table.get("loss", table)
    by_hand = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float64)
    with torch.no_grad():
        old = logprobs(by_hand)
    expected: list[dict[str, torch.Tensor]] = []
    in_batch = [k for k in range(len(GROUPS)) if any(a.any() for a in advantages[k])]  # rollouts are dealt over the minibatches
    for part in [in_batch[0::2], in_batch[1::2]] * loss.get("epochs", 1):
        now, value = logprobs(by_hand), torch.zeros((), dtype=torch.float64)
        for k in part:
            for lp, before, a in zip(now[k], old[k], advantages[k], strict=True):
                value = value + weights[k] * (term(lp, before, torch.from_numpy(a)) * torch.ones_like(lp)).sum()
        by_hand.zero_grad()
        (value * 2).backward()  # every minibatch is an estimate of the full loss
        expected.append({name: p.grad.clone() for name, p in by_hand.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for p in by_hand.parameters():
                p -= STEP * (0 if p.grad is None else p.grad)
    async with training(model, critic=getattr(algorithm, "needs", Needs()).critic) as (trainer, gradients):
        await algorithm.run(OneStep(trainer))
    assert len(gradients) == len(expected)
    for ours, theirs in zip(gradients, expected, strict=True):
        for parameter, gradient in theirs.items():  # norms and rotary angles are float32 inside transformers
            assert (ours[parameter] - gradient).norm() / gradient.norm() < 1e-5, parameter
