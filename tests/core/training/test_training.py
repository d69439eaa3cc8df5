"""`agl.train`, whole: agent, gateway, engine, store, credit, batch, trainer, checkpoints, on a tiny model with random weights."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from letters import TASKS, score, two_turns
from openai import OpenAI
from transformers import AutoModelForCausalLM

import agentlightning as agl
from agentlightning.cli.runs import _row
from agentlightning.config.tasks import load_tasks
from agentlightning.contracts.loss import CustomLoss
from agentlightning.errors import (
    AgentError,
    ConfigError,
    HalfStep,
    JoinError,
    LightningError,
    NonFinite,
    RunError,
    StoreError,
    TaskError,
    TrainerError,
    UnsupportedSetting,
)
from agentlightning.page.runs import Summaries
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_diagnosis import RunDiagnosis
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.types import Rollout, Task
from agentlightning_torch.trainer import TorchTrainer


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "folder": folder,
        "name": "tiny",
        "steps": 3,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=4),
        "trainer": {"name": "torch", "lr": 1e-3},
        "progress": False,
        **more,
    }


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return read_metrics(run.folder)


def test_a_run_trains_and_leaves_everything_behind(model: str, tmp_path: Path) -> None:
    run = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:3], **settings(model, tmp_path, eval={"every": 2}))
    assert not run.stopped
    assert [row["step"] for row in rows(run)] == [0, 1, 2, 3]
    for row in rows(run)[1:]:
        assert row["rollouts"] == 8
        assert row["transitions"] == 16
        assert row["requests.completed"] == 16
        assert row["mismatch_abs"] < 1e-3
        assert "alarm" not in row
    trained = [row for row in rows(run) if row.get("trained_tokens")]
    assert trained
    assert rows(run)[-1]["policy_version"] == len(trained)
    result = json.loads((run.folder / "result.json").read_text())
    assert result["seed"] == 0
    assert set(result["eval"]["sampled"]) == set(result["eval"]["greedy"]) == {"before", "after"}
    assert (run.folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    written = tomllib.loads((run.folder / "config.toml").read_text())  # with the values that are in force by default
    assert (written["engine"]["device"], written["trainer"]["clip_norm"], written["algorithm"]["advantage"]) == ("auto", 1.0, "grpo")
    assert "total_steps" not in written["trainer"]  # it follows from `steps`, which may be raised
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (model, run.checkpoint))
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)


def test_every_sampled_token_is_trained_or_left_out_by_name(model: str, tmp_path: Path) -> None:
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, steps=1))
    learned = RunFolder.open(run.folder).read_batch(1)
    assert len(learned) == 8
    assert sum(each.trained + sum(each.excluded.values()) for each in learned.values()) == rows(run)[0]["sampled_tokens"]
    assert sum(each.trained for each in learned.values()) == rows(run)[0]["trained_tokens"]


def test_agents_reach_their_gateway_past_a_proxy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "intranet.example")
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, steps=1))
    assert rows(run)[0]["requests.completed"] == 16
    assert os.environ["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert [each.message for each in caplog.records if "NO_PROXY is now intranet.example,127.0.0.1,localhost" in each.message]


TIMES = ("seconds", "tokens_per_second")


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows(run)]


class StopAfter:
    """Progress that stops the run, as Ctrl-C does, once a step is done."""

    def __init__(self, step: int) -> None:
        self.at, self.stop = step, asyncio.Event()

    def step(self, row: Any) -> None:
        if row["step"] == self.at:
            self.stop.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("trainer", [{"train": "full"}, {"train": "lora", "lora_rank": 4}], ids=["full", "lora"])
def test_a_stopped_and_resumed_run_has_bitwise_the_metrics_of_one_that_was_not(model: str, tmp_path: Path, trainer: dict[str, Any]) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    exact = {
        "engine": {"name": "torch", "max_batch": 1},
        "runner": agl.RunnerSettings(concurrency=1),
        "trainer": {"name": "torch", "lr": 1e-3, **trainer},
        "eval": {"every": 2},
        "steps": 4,
    }
    whole = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], **settings(model, tmp_path, **exact))
    stopper = StopAfter(2)
    arguments = settings(model, tmp_path, **exact)
    del arguments["progress"]
    job = make_job(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], **arguments)
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))
    assert half.stopped
    assert [row["step"] for row in rows(half)] == [0, 1, 2]
    resumed = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], resume=half.folder, **settings(model, tmp_path, **exact))
    assert measured(resumed) == measured(whole)
    assert any(row.get("trained_tokens") for row in rows(whole)[3:]), "nothing was trained after the stop, so nothing is shown"


def test_killed_in_the_middle_of_a_step_it_resumes_from_its_checkpoint(model: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import agentlightning as agl, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\nimport test_training as t\n"
        "if __name__ == '__main__':\n"
        "    agl.train(t.two_turns, tasks=t.TASKS, **t.settings(sys.argv[2], Path(sys.argv[3]), steps=500, progress=True,"
        " checkpoints={'every': 1}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), model, str(tmp_path / "runs")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "3/500" in line or "step 3" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    [folder] = RunFolder.all(tmp_path / "runs")
    done = folder.resume_point()[1].step
    assert done >= 2
    run = agl.train(two_turns, tasks=TASKS, resume=folder.path, **settings(model, tmp_path, steps=done + 1))
    assert [row["step"] for row in rows(run)] == list(range(1, done + 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_leave_a_run_that_can_be_resumed(model: str, tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import agentlightning as agl, signal, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\nimport test_training as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background passes on that it is ignored
        "if __name__ == '__main__':\n"
        "    run = agl.train(t.two_turns, tasks=t.TASKS, **t.settings(sys.argv[2], Path(sys.argv[3]), steps=500, progress=True))\n"
        "    print('stopped', run.stopped)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), model, str(tmp_path / "runs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "2/500" in line or "step 2" in line:
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert "stopped True" in out
    [folder] = RunFolder.all(tmp_path / "runs")
    state = folder.resume_point()[1]
    assert state.step == folder.read_state().step >= 2


async def test_train_async_runs_on_the_callers_loop(model: str, tmp_path: Path) -> None:
    loops: list[Any] = []

    async def solve(task: Any, llm: agl.LLM) -> float:
        loops.append(asyncio.get_running_loop())
        return await two_turns(task, llm)

    await agl.train_async(solve, tasks=TASKS, **settings(model, tmp_path, steps=1))
    assert set(loops) == {asyncio.get_running_loop()}


def test_a_synchronous_agent_trains_too(model: str, tmp_path: Path) -> None:
    def solve(task: Any, llm: agl.LLM) -> None:
        with OpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
            answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=8)
        agl.reward(score(answer.choices[0].message.content or ""))

    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=1))
    assert rows(run)[0]["transitions"] == 8


def test_an_agent_in_worker_processes_trains_and_a_crash_costs_an_attempt_only(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "crashing_agent.py").write_text(
        "import os, pathlib\nfrom openai import OpenAI\n"
        "def solve(task, llm):\n"
        "    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)\n"
        "    answer = client.chat.completions.create(model=llm.model, messages=[{'role': 'user', 'content': task['text']}], max_tokens=6)\n"
        f"    mark = pathlib.Path({str(tmp_path)!r}) / 'crashed'\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os._exit(7)\n"
        "    return sum(c.isalpha() for c in answer.choices[0].message.content or '') / 6\n"
    )
    run = agl.train("crashing_agent:solve", tasks=TASKS, **settings(model, tmp_path, steps=1, runner={"workers": 2, "concurrency": 4}))
    [row] = rows(run)
    assert row["unscored"] == 0
    assert row["transitions"] == 8

    async def attempts() -> list[int]:
        store = open_store(RunFolder.open(run.folder).store_address)
        states, _ = await store.list()
        await store.close()
        assert any(attempt.status != "succeeded" for state in states for attempt in state.attempts)
        return [sum(attempt.status != "cancelled" for attempt in state.attempts) for state in states]

    assert max(asyncio.run(attempts())) <= 2


def test_a_closure_cannot_go_to_worker_processes_and_the_error_says_so(model: str, tmp_path: Path) -> None:
    async def solve(task: Any, llm: agl.LLM) -> float:
        return 1.0

    with pytest.raises(ConfigError, match="Worker processes cannot import the agent"):
        agl.train(solve, tasks=TASKS, **settings(model, tmp_path, runner={"workers": 1}))


async def never_calls(task: Any, llm: agl.LLM) -> float:
    return 1.0


async def raises(task: Any, llm: agl.LLM) -> float:
    raise KeyError("question")


async def returns_nan(task: Any, llm: agl.LLM) -> float:
    return float("nan")


async def unscored(task: Any, llm: agl.LLM) -> None:
    await two_turns(task, llm)


@pytest.mark.parametrize(
    ("agent", "error", "says"),
    [
        (never_calls, JoinError, "No model call of the first step reached the gateway"),
        (raises, AgentError, r"All 8 rollouts of the first step failed.*KeyError: 'question' at .*test_training.py"),
        (returns_nan, AgentError, r"All 8 rollouts.*The reward is nan\. Use a finite number[^.]*\. See `agl show"),
        (unscored, AgentError, "No rollout in the first step received a reward"),
    ],
)
def test_what_makes_a_run_pointless_is_said_after_the_first_step(
    model: str, tmp_path: Path, agent: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        agl.train(agent, tasks=TASKS, **settings(model, tmp_path))


def test_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown model 'smollm-135m'\. Did you mean 'smollm2-135m'"):
        agl.train(two_turns, tasks=TASKS, **settings("smollm-135m", tmp_path))


def test_a_wrong_setting_is_said_before_anything_starts(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown key 'stepz'"):
        agl.train(two_turns, tasks=TASKS, stepz=3, **settings(model, tmp_path))
    with pytest.raises(ConfigError, match=r"Unknown key 'learning_rate' in \[trainer\]"):
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, trainer={"name": "torch", "learning_rate": 1}))
    with pytest.raises(ConfigError, match=r"store has a password in it.*PGPASSWORD"):
        agl.train(two_turns, tasks=TASKS, store="postgresql://me:secret@host/agl", **settings(model, tmp_path))
    with pytest.raises(TaskError, match=r"tasks is a dict\. Use a list of tasks"):
        agl.train(two_turns, tasks={"question": "2+3?"}, **settings(model, tmp_path))
    assert not RunFolder.all(tmp_path), "a run that cannot start leaves no folder"


def test_a_run_that_does_not_exist_cannot_be_resumed(model: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run"):
        agl.train(two_turns, tasks=TASKS, resume=tmp_path / "nothing", **settings(model, tmp_path))


def test_several_epochs_and_the_cispo_loss_train(model: str, tmp_path: Path) -> None:
    algorithm = agl.LightningRL(
        group_size=4, loss=agl.CISPO(epochs=2, minibatches=2), advantage="rloo", credit={"name": "discounted", "gamma": 0.9}
    )
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, algorithm=algorithm, steps=2))
    assert any(row.get("trained_tokens") for row in rows(run))


def test_early_stop_ends_a_run_that_no_longer_gets_better(model: str, tmp_path: Path) -> None:
    run = agl.train(
        two_turns,
        tasks=TASKS,
        eval_tasks=TASKS[:2],
        **settings(model, tmp_path, steps=50, trainer={"name": "torch", "lr": 1e-9}, eval={"every": 1, "patience": 2, "greedy": False}),
    )
    assert run.result["steps"] < 50


def test_engine_and_trainer_that_differ_raise_the_alarm_in_metrics_and_log(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, steps=1, mismatch_alarm=1e-12))
    assert rows(run)[0]["alarm"] == "mismatch_abs"
    assert any(record.getMessage().startswith("ALARM, step 1") for record in caplog.records)


def test_a_step_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentlightning.rl.advantage.grpo import grpo

    steps = iter(range(100))

    def broken(rollouts: Any, returns: Any) -> Any:
        good = grpo(rollouts, returns)
        return good if not len(rollouts) or next(steps) < 2 else np.full(len(returns), 1e300)

    monkeypatch.setattr("agentlightning.rl.advantage.grpo.grpo", broken)
    with pytest.raises(NonFinite):
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path))
    [folder] = RunFolder.all(tmp_path)
    assert folder.resume_point()[1].step == 2
    assert json.loads(folder.result.read_text())["steps"] == 2
    weights = AutoModelForCausalLM.from_pretrained(folder.checkpoint(2)).state_dict()
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(("error", "kept"), [(TrainerError, [2]), (HalfStep, [])])
def test_a_step_that_fails_keeps_the_steps_before_unless_it_changed_weights(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[TrainerError], kept: list[int]
) -> None:
    step, calls = TorchTrainer.step, iter(range(100))

    async def overlong(trainer: TorchTrainer, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise error("A sequence is too long.")
        return await step(trainer, *arguments)

    monkeypatch.setattr(TorchTrainer, "step", overlong)
    with pytest.raises(error, match="too long"):
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path))
    [folder] = RunFolder.all(tmp_path)
    assert folder.steps() == kept


def test_a_run_that_fails_after_an_evaluation_judges_it_once(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after, calls = RunDiagnosis.after, iter(range(100))

    async def fails_at_step_1(diagnosis: RunDiagnosis, state: RunState, row: dict[str, Any]) -> RunState:
        if next(calls) == 1:
            raise StoreError("The store is gone.")
        return await after(diagnosis, state, row)

    monkeypatch.setattr(RunDiagnosis, "after", fails_at_step_1)

    async def constant(task: Any, llm: agl.LLM) -> float:
        await two_turns(task, llm)
        return 0.5

    arguments = settings(model, tmp_path, steps=2, eval={"every": 1})
    with pytest.raises(StoreError):
        agl.train(constant, tasks=TASKS, eval_tasks=TASKS[:2], **arguments)
    [folder] = RunFolder.all(tmp_path)
    assert (folder.resume_point()[1].step, folder.resume_point()[1].evals_without_gain) == (1, 0)
    run = agl.train(constant, tasks=TASKS, eval_tasks=TASKS[:2], resume=folder.path, **arguments)
    assert [row["step"] for row in rows(run)] == [0, 1, 2]
    assert folder.read_state().evals_without_gain == 2


@pytest.mark.parametrize("full_disk", [False, True])
def test_an_error_of_any_kind_keeps_the_finished_steps_and_is_the_one_that_is_raised(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full_disk: bool
) -> None:
    async def save(trainer: TorchTrainer, folder: Path) -> None:
        raise OSError("disk full")

    class FailsAfterStep2(StopAfter):
        def step(self, row: Any) -> None:
            if row["step"] == 2:
                raise TypeError("an odd row")

    if full_disk:
        monkeypatch.setattr(TorchTrainer, "save", save)
    with pytest.raises(TypeError, match="an odd row"):
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, progress=FailsAfterStep2(-1)))
    [folder] = RunFolder.all(tmp_path)
    assert folder.steps() == ([] if full_disk else [2])
    assert ("No checkpoint of the finished steps was written" in caplog.text) == full_disk


def test_tasks_with_ids_of_their_own_are_in_the_run_folder_with_them(model: str, tmp_path: Path) -> None:
    tasks = [Task(f"question {n}", task) for n, task in enumerate(TASKS)]
    run = agl.train(two_turns, tasks=tasks, **settings(model, tmp_path, steps=1))
    assert load_tasks(run.folder / "tasks.jsonl") == tasks


def test_a_resumed_run_does_not_run_what_the_dead_one_left_in_the_queue(model: str, tmp_path: Path) -> None:
    inputs: list[Any] = []

    async def solve(task: Any, llm: agl.LLM) -> float:
        inputs.append(task["text"])
        return await two_turns(task, llm)

    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=1))
    folder = RunFolder.open(run.folder)

    async def leave() -> None:
        store = open_store(folder.store_address)
        await store.add([Rollout(task=Task(id="left", input={"text": "left"}), mode="train")])
        await store.close()

    asyncio.run(leave())
    agl.train(solve, tasks=TASKS, resume=run.folder, **settings(model, tmp_path, steps=2))
    assert len(inputs) == 16
    assert "left" not in inputs


def test_agents_that_are_not_selected_are_recorded_and_not_trained(model: str, tmp_path: Path) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    from agentlightning_langchain import LightningCallback

    async def solve(task: Any, llm: agl.LLM) -> float:
        chat = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_tokens=6)

        async def write(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke(state["messages"])]}

        async def check(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await chat.ainvoke([HumanMessage("check: " + state["messages"][-1].content)])]}

        graph = StateGraph(MessagesState)
        graph.add_node("write", write)
        graph.add_node("check", check)
        graph.add_edge(START, "write")
        graph.add_edge("write", "check")
        graph.add_edge("check", END)
        result = await graph.compile().ainvoke({"messages": [HumanMessage(task["text"])]}, config={"callbacks": [LightningCallback()]})
        return score(result["messages"][-2].content)

    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=1, agents=["write"]))
    [row] = rows(run)
    assert row["transitions"] == 16
    learned = RunFolder.open(run.folder).read_batch(1)
    assert all("agent 'check' is not selected" in each.excluded for each in learned.values())
    assert 0 < row["trained_tokens"] < row["sampled_tokens"]
    with pytest.raises(ConfigError, match=r"Unknown agent 'wrlte'\. Did you mean 'write'"):
        agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=1, agents=["wrlte"]))
    with pytest.raises(ConfigError, match=r"Unknown agent 'rewrite'\..*check, write"):
        agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=1, agents=["write", "rewrite"]))


def test_a_schedule_ends_with_the_run(model: str, tmp_path: Path) -> None:
    trainer = {"name": "torch", "lr": 1e-3, "schedule": "linear"}
    run = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, steps=2, trainer=trainer))
    assert [row["lr"] for row in rows(run) if "lr" in row] == pytest.approx([1e-3, 5e-4])


def test_a_run_without_a_checkpoint_starts_again_when_it_is_resumed(model: str, tmp_path: Path) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    arguments = settings(model, tmp_path)
    del arguments["progress"]
    stop = asyncio.Event()

    async def stopped_at_once() -> agl.Run:
        stop.set()
        return await train_job(make_job(two_turns, tasks=TASKS, **arguments), progress=StopAfter(-1), resume=None, stop=stop)

    first = asyncio.run(stopped_at_once())
    assert first.stopped
    assert rows(first) == []
    run = agl.train(two_turns, tasks=TASKS, resume=first.folder, **settings(model, tmp_path))
    assert [row["step"] for row in rows(run)] == [1, 2, 3]


def test_ctrl_c_while_a_step_is_measured_loses_nothing_and_the_resumed_run_is_bitwise_the_same(model: str, tmp_path: Path) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    exact = {
        "engine": {"name": "torch", "max_batch": 1},
        "runner": agl.RunnerSettings(concurrency=1),
        "eval": {"every": 2},
        "steps": 3,
    }
    whole = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], **settings(model, tmp_path, **exact))
    arguments = settings(model, tmp_path, **exact)
    del arguments["progress"]
    stop = asyncio.Event()

    class StopInSecondEvaluation(StopAfter):
        evaluations = 0

        def phase(self, name: str, part: float | None = None) -> None:
            self.evaluations += name == "evaluating"
            if self.evaluations == 2:
                self.stop.set()

    progress = StopInSecondEvaluation(-1)
    progress.stop = stop
    job = make_job(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], **arguments)
    half = asyncio.run(train_job(job, progress=progress, resume=None, stop=stop))
    assert half.stopped
    assert [row["step"] for row in rows(half)] == [0, 1]
    assert half.result["steps"] == 2
    resumed = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:2], resume=half.folder, **settings(model, tmp_path, **exact))
    assert measured(resumed) == measured(whole)


def test_a_return_that_contradicts_an_emitted_reward_fails_its_attempt_and_not_the_run(model: str, tmp_path: Path) -> None:
    async def solve(task: Any, llm: agl.LLM) -> float:
        earned = await two_turns(task, llm)
        if task["id"] == "0":
            agl.reward(earned + 1)
        return earned

    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, steps=3, runner={"on_failure": "drop"}))
    assert sum(row["failed"] for row in rows(run)) == 4


def test_a_posted_reward_that_contradicts_the_return_leaves_its_rollout_unscored(model: str, tmp_path: Path) -> None:
    async def solve(task: Any, llm: agl.LLM) -> float:
        earned = await two_turns(task, llm)
        if task["id"] == "0":
            headers = {"Authorization": f"Bearer {llm.api_key}"}
            async with httpx.AsyncClient(trust_env=False) as client:
                (await client.post(f"{llm.base_url}/reward", headers=headers, json=earned + 1)).raise_for_status()
        return earned

    run = agl.train(solve, tasks=TASKS, eval_tasks=TASKS[:2], **settings(model, tmp_path, steps=3))
    assert sum(row["unscored"] for row in rows(run)[1:]) == 4
    assert [row["eval.greedy.unscored"] for row in rows(run) if "eval.greedy" in row] == [1, 1]


def test_an_agent_that_exits_fails_its_attempt_and_not_the_process(model: str, tmp_path: Path) -> None:
    def solve(task: Any, llm: agl.LLM) -> float:
        sys.exit(3)

    with pytest.raises(AgentError, match="SystemExit: 3"):
        agl.train(solve, tasks=TASKS, **settings(model, tmp_path))


@pytest.mark.slow
def test_a_worker_that_its_agent_blocks_is_killed_and_its_rollout_ends(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "blocking_agent.py").write_text(
        "import time\nfrom openai import AsyncOpenAI\n"
        "async def solve(task, llm):\n"
        "    if task['id'] == '0':\n"
        "        time.sleep(1000)\n"
        "    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:\n"
        "        await client.chat.completions.create(model=llm.model, messages=[{'role': 'user', 'content': task['text']}], max_tokens=4)"
        "\n    return 1.0\n"
    )
    from agentlightning.runner.worker_pool import Workers

    monkeypatch.setattr(Workers, "GRACE", 0.5)
    workers = {"workers": 1, "concurrency": 1, "timeout": 4.0, "lease": 2.0, "on_failure": "drop"}
    run = agl.train(
        "blocking_agent:solve",
        tasks=TASKS[:2],
        **settings(model, tmp_path, steps=1, algorithm=agl.LightningRL(group_size=2), runner=workers),
    )
    [row] = rows(run)
    assert (row["rollouts"], row["failed"], row["unscored"]) == (4, 2, 2)


def test_an_agent_built_once_at_module_level_trains_unchanged(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import agentlightning_langchain

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "module_level.py").write_text(
        "from langchain.agents import create_agent\nfrom langchain_openai import ChatOpenAI\n"
        "agent = create_agent(ChatOpenAI(model='tiny', api_key='none', max_tokens=6), tools=[], name='writer')\n"
        "async def solve(task):\n"
        "    result = await agent.ainvoke({'messages': [('user', task['text'])]})\n"
        "    return sum(c.isalpha() for c in result['messages'][-1].content) / 6\n"
    )
    try:
        run = agl.train("module_level:solve", tasks=TASKS, **settings(model, tmp_path, steps=1, adapters=["langchain"], agents=["writer"]))
    finally:
        agentlightning_langchain.uninstall()
    [row] = rows(run)
    assert row["requests.completed"] == row["transitions"] == 8


class OnlyNamedLosses(TorchTrainer):
    """A trainer that takes no loss that brings its term along, as verl's."""

    @classmethod
    def offers(cls, settings: Any) -> Any:
        return dataclasses.replace(super().offers(settings), custom_losses=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTerm(CustomLoss):
    name: str = "own_term"

    def term(self, logprobs: Any, old_logprobs: Any, advantages: Any) -> Any:
        return -advantages * logprobs


def test_a_loss_with_a_term_of_its_own_is_refused_where_the_trainer_takes_none(model: str, tmp_path: Path) -> None:
    trainer = {"name": f"{__name__}:OnlyNamedLosses", "lr": 1e-3}
    with pytest.raises(UnsupportedSetting, match=r"algorithm\.loss is 'own_term', and trainer .* does not have it\. Use one of .*ppo_clip"):
        agl.train(
            two_turns,
            tasks=TASKS,
            **settings(model, tmp_path, steps=1, trainer=trainer, algorithm=agl.LightningRL(group_size=2, loss=f"{__name__}:OwnTerm")),
        )


def one_number(rollouts: Any) -> Any:
    return np.ones(1)


def words(rollouts: Any, returns: Any) -> Any:
    return "many"


def broken(rollouts: Any, returns: Any) -> Any:
    return {}["nothing"]


def summed(logprob: Any, old: Any, advantage: Any) -> Any:
    return logprob.sum()


def one_argument(logprob: Any) -> Any:
    return logprob


def yes(group: Any) -> Any:
    return "yes"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"credit": "one_number"}, r"algorithm\.credit '.*:one_number' returned shape \(1,\) for 16 transitions"),
        ({"advantage": "words"}, r"algorithm\.advantage '.*:words' raised ValueError: could not convert .* \(lightning\.py, line"),
        ({"advantage": "broken"}, r"algorithm\.advantage '.*:broken' raised KeyError: 'nothing' \(test_training\.py, line \d+\)"),
        ({"loss": "summed"}, r"loss '.*:summed' returned a tensor of shape \(\) for \d+ tokens\. Return the term of each"),
        ({"filter": "yes"}, r"collection\.filter '.*:yes' returned 'yes'"),
    ],
)
def test_a_function_of_ones_own_that_is_wrong_is_named_with_what_was_expected(
    more: dict[str, str], said: str, model: str, tmp_path: Path
) -> None:
    own = {key: f"{__name__}:{name}" for key, name in more.items()}
    collection = {"filter": own.pop("filter")} if "filter" in own else {}
    algorithm = {"name": "lightning", "group_size": 4, **own}
    with pytest.raises(LightningError, match=said) as raised:
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, steps=1, algorithm=algorithm, collection=collection))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"algorithm": {"name": "lightning", "loss": f"{__name__}:one_argument"}},
            r"algorithm\.loss 'one_argument' cannot be called as \(logprobs, old_logprobs, advantages\): too many positional arguments",
        ),
        ({"algorithm": {"name": "lightning"}, "trainer": {"name": "torch", "critic": True}}, r"trainer\.critic = true has no effect"),
        ({"algorithm": {"name": "lightning", "advantage": "gae"}}, r"algorithm\.advantage needs a critic, .* set trainer\.critic = true"),
        (
            {"algorithm": {"name": "lightning", "credit": "learned"}},
            r"algorithm\.credit or .* needs a critic, .* set trainer\.critic = true",
        ),
        (
            {"algorithm": {"name": "lightning", "loss": {"name": "ppo_clip", "kl_coef": 0.1}}, "trainer": {"name": "verl"}},
            r"algorithm\.loss\.kl_coef is set, and trainer 'verl' does not honour it",
        ),
        (
            {"algorithm": {"name": "lightning", "loss": "gspo"}, "trainer": {"name": "verl"}},
            r"algorithm\.loss is 'gspo', and trainer 'verl'",
        ),
        ({"algorithm": {"name": "lightning", "advantage": "gae"}, "trainer": {"name": "verl"}}, "verl's critic is not used"),
        ({"algorithm": {"name": "lightning", "group_size": 1}}, r"group_size is 1, and algorithm\.advantage 'grpo' compares"),
        ({"algorithm": {"name": "lightning", "loss": {"name": "cispo", "clip_high": -0.1}}}, r"loss\.clip_high is -0\.1"),
        ({"algorithm": {"name": "lightning", "advantage": "gppo"}}, "grpo"),
        ({"algorithm": {"name": "lightning", "loss": "dpo"}}, "Unknown loss 'dpo'"),
        ({"algorithm": {"name": "dpo"}, "trainer": {"name": "verl"}}, r"algorithm\.loss is 'dpo', and trainer 'verl' does not have"),
        ({"trainer": {"name": "verl", "python": "/nowhere/python"}}, r"trainer\.python is '/nowhere/python', which is not a program"),
        ({"algorithm": {"name": "dpo", "beta": 0.0}}, r"algorithm\.beta is 0\.0\. Use a finite number above 0"),
        ({"algorithm": {"name": "dpo", "group_size": 1}}, r"algorithm\.group_size is 1\. Use a whole number of at least 2"),
        ({"algorithm": {"name": "dpo", "kl_coef": 0.1}}, r"Unknown key 'kl_coef' in \[algorithm\]"),
        ({"algorithm": {"name": "rft", "min_reward": float("nan")}}, r"algorithm\.min_reward is nan"),
        ({"algorithm": {"name": "rft", "min_rewards": 0.5}}, r"Unknown key 'min_rewards' in \[algorithm\]\. Did you mean 'min_reward'"),
    ],
)
def test_what_a_run_cannot_do_is_one_line_before_any_model_loads(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        agl.train(two_turns, tasks=TASKS, **settings("a model that is nowhere", tmp_path, **more))
    assert "\n" not in str(raised.value)
    assert RunFolder.all(tmp_path) == []


def test_a_start_that_fails_keeps_its_reason_and_is_not_the_latest_run(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LightningError) as caught:
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path / "runs", store=f"sqlite:{tmp_path}/file/x.db"))
    [folder] = RunFolder.all(tmp_path / "runs")
    reason = folder.failed()
    assert reason
    assert str(caught.value).startswith(reason.removesuffix("…"))
    assert not folder.begun
    assert Summaries().of("it", folder)["state"] == f"failed: {reason}"
    assert str(_row(folder, tmp_path)[-1]) == f"failed: {reason}"
    with pytest.raises(RunError, match="There is no run under"):
        RunFolder.latest(tmp_path / "runs")
