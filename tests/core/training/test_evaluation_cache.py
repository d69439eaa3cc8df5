"""The same weights are evaluated once: a later run reuses the evaluation of an equal one, and only of an equal one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai import AsyncOpenAI
from rich.console import Console
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.config.schema import EvalConfig
from agentlightning.stores.common import open_store
from agentlightning.training import evaluation_key
from agentlightning.training.eval_rollouts import eval_rollouts
from agentlightning.training.evaluation_key import code_digest
from agentlightning.training.metrics import read_metrics
from agentlightning.training.progress import TrainingProgress
from agentlightning.training.rollouts import RolloutSettings
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Sampling, Task
from world import forget_temporary_modules

TASKS = [{"id": f"task {n}", "text": f"task {n}"} for n in range(3)]
SOURCE = """
from openai import AsyncOpenAI


async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages = [{"role": "user", "content": task["text"]}]
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
    return sum(character.isalpha() for character in (answer.choices[0].message.content or "")[:8]) / 8


async def constant(task, llm):
    await solve(task, llm)
    return 0.5
"""
Train = Callable[..., agl.Run]


class Lines(TrainingProgress):
    """Progress on a console that is no terminal."""

    def __init__(self) -> None:
        self.out = StringIO()
        super().__init__(Console(file=self.out, width=1000))


def write(file: Path, text: str) -> None:
    """Write a file that looks older than this process."""
    file.write_text(text)
    long_ago = time.time() - 1e6
    os.utime(file, (long_ago, long_ago))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a module with agents, alone in its folder."""
    file = tmp_path_factory.mktemp("agent") / "agent_of_evaluations.py"
    write(file, SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        forget_temporary_modules(patch)
        patch.syspath_prepend(str(file.parent))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield file
    sys.modules.pop(file.stem, None)


def run_training(agent: Path, runs: Path, **more: Any) -> agl.Run:
    settings: dict[str, Any] = {"tasks": TASKS, "eval_tasks": TASKS, "steps": 1, "tasks_per_step": 1, **more}
    settings = {"progress": False, "eval": {"every": 0}, "trainer": {"name": "torch", "lr": 1e-3}, **settings}
    chosen = settings.pop("closure", f"{agent.stem}:{settings.pop('function', 'solve')}")
    return agl.train(chosen, folder=runs, algorithm=agl.LightningRL(group_size=2), **settings)


@pytest.fixture(scope="module")
def measured(agent: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> agl.Run:
    """A run that evaluated the model before training."""
    return run_training(agent, tmp_path_factory.mktemp("measured") / "runs", model=model)


@pytest.fixture
def train(agent: Path, model: str, tmp_path: Path) -> Train:
    """Train in an empty folder of runs."""
    return lambda **more: run_training(agent, tmp_path / "runs", **{"model": model, **more})


@pytest.fixture
def first(measured: agl.Run, tmp_path: Path) -> Path:
    """The run that evaluated the model, in the folder of runs of this test."""
    return Path(shutil.copytree(measured.folder, tmp_path / "runs" / measured.folder.name))


def ran(run: agl.Run, step: int = 0) -> dict[str, int]:
    """The number of rollouts of an evaluation that a run made itself, by kind."""

    async def count() -> dict[str, int]:
        store = open_store(RunFolder.open(run.folder).store_address)
        states, _ = await store.list(mode="eval", step=step, limit=1000)
        await store.close()
        return dict(Counter((state.rollout.group or "").partition("-")[0] for state in states))

    return asyncio.run(count())


def before(run: agl.Run) -> dict[str, float]:
    row = read_metrics(run.folder)[0]
    assert row["step"] == 0
    return {name: row[name] for name in ("eval.sampled", "eval.greedy")}


def test_a_second_run_reuses_the_evaluation_of_the_model_and_says_so(measured: agl.Run, first: Path, train: Train) -> None:
    assert ran(measured) == {"sampled": 3, "greedy": 3}
    assert "eval_reused" not in measured.result
    progress = Lines()
    second = train(progress=progress, trainer={"name": "torch", "lr": 1e-2}, steps=2)  # what acts on updates alone does not matter
    assert ran(second) == {}
    assert before(second) == before(measured)
    assert sum(ran(second, 2).values()) == 6
    result = json.loads((second.folder / "result.json").read_text())
    assert [(entry["kind"], entry["step"], entry["run"]) for entry in result["eval_reused"]] == [
        ("sampled", 0, f"../{first.name}"),
        ("greedy", 0, f"../{first.name}"),
    ]
    assert result["eval"]["greedy"]["before"] == measured.result["eval"]["greedy"]["before"]
    [line] = [line for line in progress.out.getvalue().splitlines() if "reused" in line]
    assert f"Step 0: reused the sampled and greedy evaluation of the same weights from step 0 of run {first.name}" in line
    assert time.strftime("%Y-%m-%d") in line
    assert "eval.cache = false" in line
    shown = CliRunner().invoke(build(), ["show", str(second.folder)]).output
    assert f"The greedy evaluation of step 0 reuses the rollouts of step 0 of {first}." in shown
    assert train().result["eval_reused"][0]["run"] == f"../{first.name}"  # the run that measured, not one that reused


def test_a_new_evaluation_can_be_forced_and_counts_from_then_on(first: Path, train: Train) -> None:
    forced = train(eval={"every": 0, "cache": False})
    assert ran(forced) == {"sampled": 3, "greedy": 3}
    assert "eval_reused" not in forced.result
    assert train().result["eval_reused"][0]["run"] == f"../{forced.folder.name}" != f"../{first.name}"


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"seed": 1}, {"sampled": 3}),
        ({"sampling": {"temperature": 0.5}}, {"sampled": 3}),
        ({"eval": {"every": 0, "samples": 2}}, {"sampled": 6}),
        ({"eval": {"every": 0, "tasks": 2}}, {}),
        ({"sampling": {"max_tokens": 4}}, {"sampled": 3, "greedy": 3}),
        ({"engine": {"name": "torch", "max_batch": 1}}, {"sampled": 3, "greedy": 3}),
        ({"trainer": {"name": "torch", "dtype": "float64"}}, {"sampled": 3, "greedy": 3}),
        ({"renderer": "text"}, {"sampled": 3, "greedy": 3}),
        ({"runner": {"attempts": 1}}, {"sampled": 3, "greedy": 3}),
        ({"eval_tasks": [{**TASKS[0], "text": "other"}]}, {"sampled": 1, "greedy": 1}),
        ({"function": "constant"}, {"sampled": 3, "greedy": 3}),
    ],
)
@pytest.mark.usefixtures("first")
def test_only_what_is_equal_is_reused(train: Train, change: dict[str, Any], runs: dict[str, int]) -> None:
    assert ran(train(**change)) == runs


@pytest.mark.usefixtures("first")
def test_other_weights_are_evaluated(train: Train, model: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert ran(train(model=str(copy))) == {}  # the same content under another name
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    assert sum(ran(train(model=str(copy))).values()) == 6


@pytest.mark.usefixtures("first")
def test_changed_code_is_evaluated(train: Train, agent: Path) -> None:
    prompt, config = agent.with_name("prompt.txt"), agent.with_name("run.toml")
    try:
        write(agent, SOURCE + "# another prompt\n")
        assert sum(ran(train()).values()) == 6
        write(prompt, "Answer briefly.")
        assert sum(ran(train()).values()) == 6
        write(config, f'model = "x"\nagent = "{agent.stem}:solve"\n')  # the config of a run is no code
        assert ran(train()) == {}
    finally:
        write(agent, SOURCE)
        prompt.unlink()
        config.unlink()


def test_a_file_that_a_task_names_is_part_of_it(train: Train, tmp_path: Path) -> None:
    database = tmp_path / "shop.sqlite"
    database.write_text("one")
    tasks = [{"text": "how many?", "database": {"path": str(database)}}]
    train(eval_tasks=tasks)
    assert ran(train(eval_tasks=tasks)) == {}
    database.write_text("other")
    assert ran(train(eval_tasks=tasks)) == {"sampled": 1, "greedy": 1}


@pytest.mark.usefixtures("first")
def test_code_that_changed_after_it_was_loaded_has_no_evaluation_to_share(train: Train, agent: Path) -> None:
    try:
        os.utime(agent, (time.time(), time.time() + 60))
        run = train()
    finally:
        write(agent, SOURCE)
    assert sum(ran(run).values()) == 6
    assert not (run.folder / "evaluation.json").exists()


def test_an_agent_that_no_module_names_is_always_evaluated(train: Train) -> None:
    async def closure(task: Any, llm: agl.LLM) -> float:
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": "x"}]
            await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=2)
        return 0.5

    assert not (train(closure=closure).folder / "evaluation.json").exists()
    assert sum(ran(train(closure=closure)).values()) == 6


@pytest.mark.parametrize("gone", ["", "store.db", "evaluation.json"])
def test_a_run_that_is_gone_takes_its_evaluation_along(train: Train, first: Path, gone: str) -> None:
    (first / gone).unlink() if gone else shutil.rmtree(first)
    assert sum(ran(train()).values()) == 6


def test_weights_that_no_step_changed_are_evaluated_once_in_a_run(train: Train) -> None:
    progress = Lines()
    run = train(function="constant", steps=2, eval={"every": 1}, progress=progress)
    assert [sum(ran(run, step).values()) for step in (0, 1, 2)] == [6, 0, 0]
    rows = read_metrics(run.folder)
    assert [row["eval.greedy"] for row in rows] == [0.5, 0.5, 0.5]
    assert [(entry["step"], entry["run"], entry["run_step"]) for entry in run.result["eval_reused"]] == [
        (1, ".", 0), (1, ".", 0), (2, ".", 0), (2, ".", 0),
    ]  # fmt: skip
    assert "Step 2: reused the sampled and greedy evaluation of the same weights from step 0 of this run" in progress.out.getvalue()
    again = train(function="constant", steps=1, eval={"every": 1})
    assert [sum(ran(again, step).values()) for step in (0, 1)] == [0, 0]
    assert {entry["run"] for entry in again.result["eval_reused"]} == {f"../{run.folder.name}"}


def test_a_resumed_run_evaluates_again_because_its_reward_may_have_changed(train: Train) -> None:
    run = train(function="constant", steps=1, eval={"every": 1})
    resumed = train(function="constant", steps=3, eval={"every": 1}, resume=run.folder)
    assert [sum(ran(resumed, step).values()) for step in (0, 1, 2, 3)] == [6, 0, 6, 0]


def test_an_evaluation_that_runs_again_is_no_longer_shared(train: Train, first: Path, agent: Path) -> None:
    shutil.rmtree(first / "checkpoints")
    (first / "checkpoints").mkdir()
    try:
        os.utime(agent, (time.time(), time.time() + 60))
        train(resume=first)
    finally:
        write(agent, SOURCE)
    assert not (first / "evaluation.json").exists()


def test_trained_weights_are_evaluated_at_every_step(train: Train) -> None:
    run = train(steps=2, eval={"every": 1}, tasks_per_step=3)
    assert [sum(ran(run, step).values()) for step in (0, 1, 2)] == [6, 6, 6]


def test_a_folder_that_is_too_large_to_read_has_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("pass")
    assert code_digest(tmp_path) is not None
    monkeypatch.setattr(evaluation_key, "MOST_FILES", 1)
    assert code_digest(tmp_path) is None
    monkeypatch.setattr(evaluation_key, "MOST_FILES", 2)
    monkeypatch.setattr(evaluation_key, "MOST_BYTES", 7)
    assert code_digest(tmp_path) is None


def test_the_script_that_starts_the_program_is_not_its_code(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = evaluation_key.loaded_code()
    script = ModuleType("script")
    script.__file__ = str(Path(sysconfig.get_path("scripts")) / "agl")
    monkeypatch.setitem(sys.modules, "script", script)
    assert others is not None
    assert evaluation_key.loaded_code() == others


def test_a_package_counts_with_its_subfolders_and_a_folder_without(tmp_path: Path) -> None:
    inner = tmp_path / "inner" / "deep.py"
    inner.parent.mkdir()
    (tmp_path / "a.py").write_text("pass")
    folder = code_digest(tmp_path)
    inner.write_text("pass")
    assert code_digest(tmp_path) == folder
    (tmp_path / "__init__.py").touch()
    package = code_digest(tmp_path)
    inner.write_text("other")
    assert code_digest(tmp_path) != package


def test_the_rollouts_of_one_task_are_neighbours() -> None:
    tasks = [Task(name, {}) for name in "abc"]
    rollouts = eval_rollouts(EvalConfig(samples=2), tasks, RolloutSettings(0, Sampling(), 1), 5)
    assert [(rollout.task.id, rollout.group, rollout.index) for rollout in rollouts[:4]] == [
        ("a", "sampled-5-0", 0), ("a", "sampled-5-0", 1), ("a", "greedy-5-0", 0), ("b", "sampled-5-1", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "expected"), [(None, "abcdefghij"), (1, "a"), (4, "acfh"), (7, "abcefhi"), (10, "abcdefghij"), (99, "abcdefghij")]
)
def test_an_evaluation_of_some_tasks_spreads_them_over_the_file(count: int | None, expected: str) -> None:
    tasks = [Task(name, {}) for name in "abcdefghij"]
    assert "".join(task.id for task in EvalConfig(tasks=count).chosen(tasks)) == expected
    rollouts = eval_rollouts(EvalConfig(tasks=count), tasks, RolloutSettings(0, Sampling(), 1), 0)
    assert "".join(dict.fromkeys(rollout.task.id for rollout in rollouts)) == expected
    assert EvalConfig(tasks=count).chosen([]) == []
