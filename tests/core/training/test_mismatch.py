"""Weights that change under the engine in mid-step: the step is not trained, the engine loads its weights again, the step samples again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Container
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from letters import TASKS, two_turns

import agentlightning as agl
from agentlightning.contracts.engine import EngineSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import EngineError
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.step_checks import StepChecks
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.weights import get_weights

CALLS = 16
"""Model calls in a step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnWeights(EngineSettings):
    @property
    def copy_weights(self) -> bool:
        return True


class Disturbed(TorchEngine):
    """An engine with weights of its own, as on another machine. Somebody changes them before some of its calls."""

    Settings = OwnWeights  # type: ignore[assignment]
    disturbed: ClassVar[Container[int]] = ()
    """Numbers of the calls, from 1."""
    calls: ClassVar[int] = 0

    @classmethod
    async def create(cls, model: ModelFiles, settings: Any, share: Share) -> Any:
        weights = get_weights({}, model, device="cpu", dtype="float32")
        engine = cls(weights, TorchEngineSettings(device="cpu", dtype="float32", max_batch=1))
        engine.info = dataclasses.replace(engine.info, uris=frozenset({"file"}))
        return engine

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        Disturbed.calls += 1
        if Disturbed.calls in self.disturbed:
            while self.policy.version < 1:  # a call that runs ahead of step 1 would not count: its tokens are of older weights
                await asyncio.sleep(0.01)
            with self._weights.lock, torch.no_grad():
                for parameter in self._weights.model.parameters():
                    parameter.mul_(1.3)
        async for chunk in super().generate(*args, **kwargs):
            yield chunk


def train(model: str, folder: Path, *disturbed: int, **settings: Any) -> agl.Run:
    Disturbed.disturbed, Disturbed.calls = disturbed, 0
    defaults: dict[str, Any] = {
        "steps": 3,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=4),
        "trainer": {"name": "torch", "lr": 1e-3, "device": "cpu", "dtype": "float32"},
        "engine": {"name": f"{__name__}:Disturbed"},
        "runner": agl.RunnerSettings(concurrency=1),
        "progress": False,
    }
    return agl.train(two_turns, tasks=TASKS, model=model, folder=folder, **{**defaults, **settings})


def measured(run: agl.Run) -> list[dict[str, Any]]:
    """The metrics of each step that no clock decides."""
    return [{name: value for name, value in row.items() if "second" not in name} for row in read_metrics(run.folder)]


def test_a_step_whose_weights_changed_under_the_engine_is_sampled_again_and_trained_as_if_nothing_had_happened(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = measured(train(model, tmp_path))
    assert not caplog.records
    run = train(model, tmp_path, CALLS + 3)
    rows = measured(run)
    assert rows[1].pop("rollouts_mismatched") == 8
    assert rows == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("ALARM, step 2: not trained. Engine and trainer differ by ")
    assert not RunFolder.open(run.folder).weights.exists()


def test_groups_that_run_ahead_of_such_a_step_are_sampled_again_too(model: str, tmp_path: Path) -> None:
    run = train(model, tmp_path, CALLS + 3, collection={"max_staleness": 1}, algorithm=agl.LightningRL(group_size=4, advantage="rloo"))
    rows, folder = measured(run), RunFolder.open(run.folder)
    assert [row["rollouts"] for row in rows] == [8, 8, 8]
    assert sum(row.get("rollouts_mismatched", 0) for row in rows) == 8
    assert all(row["mismatch_abs"] < 1e-4 for row in rows if "mismatch_abs" in row)
    trained = [rollout_id for step in (1, 2, 3) for rollout_id in folder.read_batch(step)]
    assert len(set(trained)) == 24


def test_a_step_that_comes_from_other_weights_again_ends_the_run_before_it_is_trained(model: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Step 2 was sampled again, and the rollouts still come from other weights\. .* mismatch_limit"):
        train(model, tmp_path, CALLS + 3, 2 * CALLS + 3)
    (run,) = RunFolder.all(tmp_path)
    assert [row["step"] for row in read_metrics(run.path)] == [1]
    assert run.steps() == [1]


def test_a_difference_below_the_limit_is_trained_with_an_alarm(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = measured(train(model, tmp_path, CALLS + 3, mismatch_limit=100.0, steps=2))
    assert rows[1]["alarm"] == "mismatch_abs"
    assert "rollouts_mismatched" not in rows[1]
    assert any(record.getMessage().startswith("ALARM, step 2: engine and trainer differ by") for record in caplog.records)


@pytest.mark.parametrize(
    ("measured", "alarmed"),
    [
        ({}, False),
        ({"mismatch_abs": 0.04}, False),
        ({"mismatch_abs": 0.06}, True),  # a trainer that tells no standard error
        ({"mismatch_abs": 0.06, "mismatch_abs_error": 0.001}, True),
        ({"mismatch_abs": 0.06, "mismatch_abs_error": 0.02}, False),
        ({"mismatch_abs": 0.2, "mismatch_abs_error": 0.02}, True),
    ],
)
def test_an_alarm_needs_a_difference_that_chance_does_not_explain(measured: dict[str, float], alarmed: bool, tmp_path: Path) -> None:
    alarm = StepChecks(None, 0.05, tmp_path).alarm({"step": 3, **measured})
    assert (alarm is not None) == alarmed
