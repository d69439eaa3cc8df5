"""On-policy distillation is exact: over a tiny vocabulary, the expected gradient of the sampled estimate is that of the divergence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.model import ModelFiles
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.types import Doubles, Trajectory
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.settings import TorchEngineSettings
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings, TorchTrainer
from agentlightning_torch.weights import no_bars
from world import two_groups

VOCABULARY = 5
PROMPT = [1, 3]
OBSERVATION = [2]
"""What the environment says between the two replies."""
TEMPERATURE = 0.8
EXACT: dict[str, Any] = {"device": "cpu", "dtype": "float64"}


def tiny(folder: Path, seed: int) -> ModelFiles:
    """A model of five tokens."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.3, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with no_bars():
        model.save_pretrained(str(folder))
    return ModelFiles(f"tiny-{seed}", str(folder))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFiles, ModelFiles]:
    folder = tmp_path_factory.mktemp("pair")
    return tiny(folder / "student", 1), tiny(folder / "teacher", 2)


@dataclass
class OneRollout:
    """A session of one step over one rollout, with a real trainer and a real teacher."""

    trainer: TorchTrainer
    teacher: TorchEngine
    rollout: Trajectory
    max_staleness: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def steps(self) -> Iterator[int]:
        yield 0

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        return [self.rollout]

    async def teacher_logprobs(self, batch: Batch) -> Doubles:
        return await self.teacher.score(batch)

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        return (await self.trainer.step(batch, loss))[1]

    async def finish_step(self, step: int, trajectories: Any, returns: Any, advantages: Any, batch: Batch, metrics: Any) -> None:
        self.metrics = metrics


@asynccontextmanager
async def opened(pair: tuple[ModelFiles, ModelFiles]) -> AsyncIterator[tuple[TorchTrainer, TorchEngine, dict[str, torch.Tensor]]]:
    """A trainer that keeps its weights, the teacher, and the gradients of the last step."""
    student, teacher = pair
    trainer = await TorchTrainer.create(student, Settings(**EXACT), {})
    engine = await TorchEngine.create(teacher, TorchEngineSettings(**EXACT), {})
    gradients: dict[str, torch.Tensor] = {}

    def step(lr: float) -> float:
        gradients.update({name: p.grad.clone() for name, p in trainer.weights.model.named_parameters() if p.grad is not None})
        trainer.optimizer.zero()
        return 0.0

    trainer.optimizer.step = step  # type: ignore[method-assign]
    try:
        yield trainer, engine, gradients
    finally:
        await trainer.close()
        await engine.close()


def after(model: Any, ids: list[int]) -> torch.Tensor:
    """(vocabulary,) log-probabilities of the next token."""
    return (model(input_ids=torch.tensor([ids])).logits[0, -1] / TEMPERATURE).log_softmax(-1)


def rewarded(first: int, second: int) -> float:
    return 0.3 * first - 0.2 * second + (1.0 if first == second else 0.0)


def objective(model: Any, teacher: Any, coef: float) -> torch.Tensor:
    """The exact loss: minus the expected reward of two replies of one token, plus `coef` times the divergence at each prefix, whose
    probability carries no gradient."""
    value = torch.zeros((), dtype=torch.float64)
    first = after(model, PROMPT)
    value = value + coef * (first.exp() * (first - after(teacher, PROMPT))).sum()
    for one in range(VOCABULARY):
        prefix = [*PROMPT, one, *OBSERVATION]
        second = after(model, prefix)
        value = value + coef * first[one].exp().detach() * (second.exp() * (second - after(teacher, prefix))).sum()
        for two in range(VOCABULARY):
            value = value - (first[one] + second[two]).exp() * rewarded(one, two)
    return value


async def expected(pair: tuple[ModelFiles, ModelFiles], advantage: str, coef: float) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient of the sampled estimate, and the metric, over all rollouts with the probability of each."""
    student = AutoModelForCausalLM.from_pretrained(pair[0].path, dtype=torch.float64)
    algorithm = LightningRL(advantage=advantage, teacher_coef=coef, group_size=1, loss_aggregation="constant_length", length=1)
    total: dict[str, torch.Tensor] = {}
    divergence = 0.0
    async with opened(pair) as (trainer, teacher, gradients):
        for one, two in product(range(VOCABULARY), repeat=2):
            with torch.no_grad():
                logprobs = [float(after(student, PROMPT)[one]), float(after(student, [*PROMPT, one, *OBSERVATION])[two])]
            turns = conversation(PROMPT, [([one], OBSERVATION), ([two], [])], temperature=TEMPERATURE)
            turns = [_with_logprob(turn, logprob) for turn, logprob in zip(turns, logprobs, strict=True)]
            session = OneRollout(trainer, teacher, trajectory(0, *turns, reward=rewarded(one, two) if advantage == "reinforce" else None))
            gradients.clear()  # a rollout with the advantage 0 takes no step
            await algorithm.run(session)
            probability = float(np.exp(sum(logprobs)))
            divergence += probability * 2 * session.metrics.get("teacher_kl", 0.0)  # the metric is a mean over two tokens
            for name, gradient in gradients.items():
                total[name] = total.get(name, torch.zeros_like(gradient)) + probability * gradient
    return total, divergence


def _with_logprob(turn: Any, logprob: float) -> Any:
    from msgspec.structs import replace

    return replace(turn, logprobs=np.array([logprob], np.float32))


@pytest.mark.parametrize(("advantage", "coef"), [("none", 1.0), ("none", 0.25), ("reinforce", 0.7)])
async def test_the_expected_gradient_is_that_of_the_exact_divergence_and_of_the_reward(
    pair: tuple[ModelFiles, ModelFiles], advantage: str, coef: float
) -> None:
    ours, divergence = await expected(pair, advantage, coef)
    model, teacher = (AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float64) for files in pair)
    loss = objective(model, teacher.requires_grad_(False), coef)
    if advantage == "none":
        loss = loss - (objective(model, teacher, 0.0))  # without the reward
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (ours[name] - parameter.grad).norm() / parameter.grad.norm() < 1e-5, name
    with torch.no_grad():
        exact = float(objective(model, teacher, 1.0) - objective(model, teacher, 0.0))
    assert divergence == pytest.approx(exact, rel=1e-5)


async def test_the_gradient_of_the_teacher_is_added_to_that_of_the_reward(pair: tuple[ModelFiles, ModelFiles]) -> None:
    mixed, reward, taught = [
        (await expected(pair, advantage, coef))[0] for advantage, coef in (("reinforce", 0.4), ("reinforce", 0.0), ("none", 1.0))
    ]
    for name, gradient in mixed.items():
        assert (gradient - reward[name] - 0.4 * taught[name]).norm() / gradient.norm() < 1e-6, name


async def test_a_teacher_scores_a_forest_as_it_scores_rows(tmp_path: Path) -> None:
    files = tiny_model(tmp_path / "teacher", seed=3)
    trajectories = two_groups()
    batch = make_batch(trajectories, [np.ones(2)] * len(trajectories))
    engine = await TorchEngine.create(files, TorchEngineSettings(**EXACT), {})
    try:
        scored = batch.by_transition(await engine.score(batch))
        computed = engine._given_tokens._scoring
    finally:
        await engine.close()
    assert [scoring.forest for scoring in computed.values()] == [True], "shared prefixes are computed once"
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float64)
    for transition in (t for rollout in trajectories for t in rollout.transitions):
        row = torch.tensor([*transition.prompt_ids.tolist(), *transition.response_ids.tolist()])
        with torch.no_grad():
            logprobs = (model(input_ids=row[None]).logits[0, :-1] / transition.temperature).log_softmax(-1)
        expected = logprobs.gather(1, row[1:, None])[len(transition.prompt_ids) - 1 :, 0].numpy()
        np.testing.assert_allclose(scored[transition.completion_id], expected, atol=1e-6)


async def test_a_long_conversation_is_scored_and_a_foreign_token_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.errors import EngineError
    from agentlightning_torch import given_tokens

    monkeypatch.setattr(given_tokens, "TOKENS_PER_PACK", 16)
    files = tiny_model(tmp_path / "teacher", seed=3)
    engine = await TorchEngine.create(files, TorchEngineSettings(**EXACT), {})

    def batch(top: int) -> Batch:
        turns = conversation(list(range(3, 30)), [([5, 6, top], [])], logprobs=-1.0)
        return make_batch([trajectory(0, *turns)], [np.ones(1)])

    try:
        assert np.isfinite((await engine.score(batch(7)))[-3:]).all()
        with pytest.raises(EngineError, match="The batch has token 400, but 'tiny' has tokens 0 to 258"):
            await engine.score(batch(400))
    finally:
        await engine.close()
    with pytest.raises(EngineError, match="is closed"):
        await asyncio.wait_for(engine.score(batch(7)), 5)
