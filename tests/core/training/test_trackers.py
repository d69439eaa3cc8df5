"""What a run tells its trackers, and trackers that fail."""

from __future__ import annotations

import re
import sys
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from letters import TASKS, two_turns

import agentlightning as agl
from agentlightning.config.schema import build_config, check_names
from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker, TrackerSettings
from agentlightning.errors import ConfigError, MissingExtra
from agentlightning.registry.registry import registry
from agentlightning.training import trackers as trackers_module
from agentlightning.training.metrics import read_metrics
from agentlightning.training.trackers import Trackers

HERE = f"{__name__}:"


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "folder": folder,
        "steps": 2,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=2),
        "progress": False,
        **more,
    }


class Remembers(Tracker):
    """Keeps everything in the class."""

    runs: list[Self] = []  # noqa: RUF012

    class Settings(TrackerSettings):
        rollouts = 3

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.calls, self.rows = run, list[str](), list[Mapping[str, Any]]()
        self.evaluations, self.rollouts = dict[int, Sequence[EvaluatedTask]](), dict[int, Sequence[TrackedRollout]]()
        self.threads, self.end = set[str](), ""
        self.runs.append(self)

    @classmethod
    def create(cls, run: TrackedRun, settings: Any) -> Self:
        return cls(run)

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.rows.append(metrics)
        self.calls.append(f"log {metrics['step']}")
        self.threads.add(threading.current_thread().name)

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        self.evaluations[step] = tasks
        self.calls.append(f"evaluation {step}")

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        self.rollouts[step] = rollouts
        self.calls.append(f"rollouts {step}")

    def close(self, end: RunEnd) -> None:
        self.end = end


def test_a_tracker_sees_the_settings_metrics_evaluations_and_a_sample_of_rollouts(model: str, tmp_path: Path) -> None:
    Remembers.runs.clear()
    run = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], **settings(model, tmp_path, trackers=[HERE + "Remembers"]))
    [tracker] = Remembers.runs
    assert tracker.rows == read_metrics(run.folder)
    assert tracker.calls == ["evaluation 0", "log 0", "rollouts 1", "log 1", "rollouts 2", "evaluation 2", "log 2"]
    assert tracker.threads == {f"tracker {HERE}Remembers"}
    assert tracker.end == "finished"
    config = tracker.run.config
    assert config["steps"] == 2
    assert config["sampling"] == {"temperature": 1.0, "max_tokens": None}
    assert config["engine"]["max_batch"] is not None
    assert config["trainer"]["betas"] == [0.9, 0.999]
    assert config["algorithm"]["group_size"] == 2
    assert config["algorithm"]["advantage"] == "grpo"
    first, last = tracker.evaluations[0], tracker.evaluations[2]
    assert [(task.id, task.sampled, task.greedy) for task in first] == [(task.id, task.sampled_before, task.greedy_before) for task in last]
    assert [task.task for task in last] == ["0 abc", "1 xyz"]
    for kind in ("sampled", "greedy"):
        mean = sum(getattr(task, kind) for task in last) / 2
        assert mean == pytest.approx(tracker.rows[-1][f"eval.{kind}"])
    rollouts = tracker.rollouts[2]
    assert len(rollouts) == 3
    assert {tuple(message["role"] for message in rollout.messages) for rollout in rollouts} == {("user", "assistant") * 2}
    assert rollouts[0].messages[2]["content"] == "more"
    assert all(rollout.reward is not None for rollout in rollouts)


class FailsAtStart(Remembers):
    advice = "Start its server."

    @classmethod
    def create(cls, run: TrackedRun, settings: Any) -> Self:
        raise SystemExit("no server at http://me:secret@host:5000")


class FailsInLog(Remembers):
    def log(self, metrics: Mapping[str, Any]) -> None:
        super().log(metrics)
        raise ConnectionError("the server is gone")


class FailsAtEnd(Remembers):
    def close(self, end: RunEnd) -> None:
        raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FailsAtStart", "did not start: SystemExit: no server at http://***@host:5000. The run continues without it. Start its server."),
        ("FailsInLog", "failed at step 1: ConnectionError: the server is gone. The run continues. Check its settings, or remove it from"),
        ("FailsAtEnd", "could not be closed: OSError: no space left on device. Check its settings"),
    ],
)
def test_a_tracker_that_fails_is_one_warning_and_stops_no_run(
    name: str, said: str, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Remembers.runs.clear()
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, trackers=[HERE + name, HERE + "Remembers"]))
    assert run.result["finished"]
    assert [row["step"] for row in read_metrics(run.folder)] == [1, 2]
    [warning] = [record.getMessage() for record in caplog.records if "racker" in record.getMessage()]
    assert warning.startswith(f"Tracker '{HERE}{name}' {said}")
    for tracker in Remembers.runs:
        assert [row["step"] for row in tracker.rows] == [1, 2]  # the other one too, and one that failed is called again


def in_folder(folder: Path) -> TrackedRun:
    return TrackedRun("id", folder, "tiny", {}, 0, print)


class Slow(Remembers):
    release = threading.Event()

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.release.wait(30)
        super().log(metrics)


async def test_a_slow_tracker_delays_no_step(tmp_path: Path) -> None:
    Slow.runs.clear()
    Slow.release.clear()
    async with Trackers([("slow", Slow, Slow.Settings())], in_folder(tmp_path)) as trackers:
        began = time.monotonic()
        for step in range(5):
            trackers.log({"step": step})
        assert time.monotonic() - began < 5
        assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
        Slow.release.set()
    assert [row["step"] for row in Slow.runs[0].rows] == [0, 1, 2, 3, 4]


async def test_a_tracker_that_hangs_at_the_end_is_left_behind_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 0.2)
    Slow.release.clear()
    async with Trackers([("slow", Slow, Slow.Settings())], in_folder(tmp_path)) as trackers:
        trackers.log({"step": 0})
    Slow.release.set()
    assert "Tracker 'slow' has not written everything at the end of the run." in caplog.text


async def test_steps_of_an_earlier_session_are_not_logged_again(tmp_path: Path) -> None:
    class Replaces(Remembers):
        replaces_steps = True

    Remembers.runs.clear()
    for steps in (range(4), range(2, 6)):
        chosen = [("one", Remembers, Remembers.Settings()), ("two", Replaces, Replaces.Settings())]
        async with Trackers(chosen, in_folder(tmp_path)) as trackers:
            for step in steps:
                trackers.log_evaluation(step, [])
                trackers.log({"step": step})
    one, two = (tracker for tracker in Remembers.runs[2:])
    assert sorted([one.calls, two.calls], key=len) == [
        ["evaluation 4", "log 4", "evaluation 5", "log 5"],
        [f"{call} {step}" for step in range(2, 6) for call in ("evaluation", "log")],
    ]


@pytest.mark.parametrize(("error", "end"), [(None, "finished"), (RuntimeError, "failed")])
async def test_a_tracker_learns_how_the_run_ended(tmp_path: Path, error: type[Exception] | None, end: str) -> None:
    Remembers.runs.clear()
    try:
        async with Trackers([("it", Remembers, Remembers.Settings())], in_folder(tmp_path)):
            if error is not None:
                raise error
    except RuntimeError:
        pass
    assert Remembers.runs[0].end == end


def test_the_tracker_of_the_page_on_trackers_works(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "trackers.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_tracker.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL):
        config = build_config({"agent": "a:b", "tasks": "t.jsonl", "model": "m", **tomllib.loads(text)})
        check_names(config)
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, trackers=config.trackers))
    assert (run.folder / "rewards.txt").read_text() == "".join(f"{row['step']}: {row['reward']}\n" for row in read_metrics(run.folder))


def test_the_page_on_trackers_names_every_tracker_in_both_tables() -> None:
    page = (Path(__file__).parents[3] / "docs" / "trackers.md").read_text()
    for entry in registry().entries("trackers"):
        assert page.count(f"\n| `{entry.name}` |") == (2 if entry.name != "jsonl" else 0), entry.name


def test_a_library_that_is_missing_is_named_before_the_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"Tracker 'wandb' needs wandb, .* Run: pip install 'agentlightning\[wandb\]'"):
        agl.train(two_turns, tasks=TASKS, **settings("a model that is nowhere", tmp_path, trackers=["wandb"]))


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        (["wandbb"], r"trackers: Unknown tracker 'wandbb'\. Did you mean 'wandb'\?"),
        ([{"name": "wandb", "projct": "x"}], r"Unknown key 'projct' in \[trackers\.wandb\]\. Did you mean 'project'\?"),
        ([{"name": "wandb", "project": 3}], r"trackers\.wandb\.project is 3\. Use text"),
        ([{"project": "x"}], r"trackers has \{'project': 'x'\}\. Use a name, or a table with a name and settings\."),
        (["wandb", {"name": "wandb"}], r"trackers has 'wandb' twice\."),
        ([{"name": "mlflow", "tracking_uri": "http://me:secret@host"}], r"trackers\.mlflow\.tracking_uri has a password in it"),
    ],
)
def test_wrong_settings_of_a_tracker_are_found_without_its_library(trackers: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_names(build_config({"agent": "a:b", "tasks": "t.jsonl", "model": "m", "trackers": trackers}))
