"""Runs in which a teacher answers the agent first: its good rollouts are demonstrations, and reinforcement learning goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from letters import TASKS, ask, score
from openai import AsyncOpenAI
from starlette.responses import HTMLResponse, JSONResponse

import agentlightning as agl
from agentlightning.contracts.store import StoredRollout
from agentlightning.errors import AgentError, ConfigError, EngineError, UnsupportedSetting
from agentlightning.stores.common import open_store
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_job
from agentlightning_upstream import prompt_logprobs
from judge_server import JudgeServer, judge_server
from world import StopAfter


async def solve(task: Any, llm: agl.LLM) -> float:
    return score(await ask(llm, [{"role": "user", "content": task["text"]}], tokens=16))


def letters(body: dict[str, Any]) -> str:
    """A good answer, but a bad one to one of the tasks."""
    return "12345678" if body["messages"][0]["content"] == "why?" else "abcdefgh"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(letters) as server:
        yield server


def settings(model: str, folder: Path, server: JudgeServer | None, **more: Any) -> dict[str, Any]:
    teacher = {} if server is None else {"teacher": {"model": "strong", "engine": {"name": "upstream", "url": server.base_url}}}
    return {
        "model": model, "folder": folder, "steps": 5, "tasks_per_step": 3, "sampler": "in_order", "progress": False,
        "algorithm": {"name": "rloo", "group_size": 4, "demonstrated_steps": 3}, "trainer": {"name": "torch", "lr": 3e-3},
        "engine": {"name": "torch", "max_batch": 1}, "runner": {"concurrency": 1}, **teacher, **more,
    }  # fmt: skip


def stored(run: agl.Run) -> list[StoredRollout]:
    async def read() -> list[StoredRollout]:
        store = open_store(RunFolder.open(run.folder).store_address)
        try:
            return [await store.read(state.rollout.id) for state in (await store.list(limit=1000))[0]]
        finally:
            await store.close()

    return asyncio.run(read())


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.folder) if row["step"]]


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("seconds", "tokens_per_second"))} for row in rows(run)]


def test_one_configuration_learns_from_a_teacher_first_and_from_rewards_then(model: str, server: JudgeServer, tmp_path: Path) -> None:
    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, server))
    assert [row["rollouts"] for row in rows(run)] == [3, 3, 3, 12, 12]
    assert len(server.bodies) == 9, "the teacher is asked in the demonstrated steps alone"
    assert server.bodies[0] == {"model": "strong", "messages": [{"role": "user", "content": "abc"}]}
    demonstrated = {
        state.rollout.step: {completion.demonstrated for attempt in records for completion in attempt.completions}
        for state, records in stored(run)
    }
    assert demonstrated == {0: {True}, 1: {True}, 2: {True}, 3: {False}, 4: {False}}
    # Each byte is a token here, and the reply has an end mark. The answer to 'why?' in step 2 earns 0 and is not trained.
    assert [row["trained_tokens"] for row in rows(run)[:3]] == [27, 18, 27]
    excluded = [reason for learned in RunFolder.open(run.folder).read_batch(2).values() for reason in learned.excluded]
    assert excluded == ["the reward of its rollout is below min_reward (1)"]
    assert rows(run)[2]["loss"] < rows(run)[0]["loss"]
    assert "mismatch_abs" not in rows(run)[0]
    assert rows(run)[3]["mismatch_abs"] < 1e-3, "reinforcement learning starts from the supervised weights"


def test_sft_asks_the_teacher_in_every_step(model: str, server: JudgeServer, tmp_path: Path) -> None:
    run = agl.train(solve, tasks=TASKS, **settings(model, tmp_path, server, steps=2, algorithm="sft"))
    assert len(server.bodies) == 6
    assert [row["trained_tokens"] for row in rows(run)] == [27, 18]


def test_a_resumed_run_does_what_one_does_that_was_not_stopped(model: str, server: JudgeServer, tmp_path: Path) -> None:
    arguments = settings(model, tmp_path, server, steps=4)
    whole = agl.train(solve, tasks=TASKS, **arguments)
    stopper = StopAfter(2)
    job = make_job(solve, tasks=TASKS, **{key: value for key, value in arguments.items() if key != "progress"})
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))  # type: ignore[arg-type]
    assert half.stopped
    resumed = agl.train(solve, tasks=TASKS, resume=half.folder, **arguments)
    assert measured(resumed) == measured(whole)


def test_the_teacher_answers_in_the_form_that_the_agent_asks_for_and_ends_at_its_stop_text(model: str, tmp_path: Path) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "thought", "schema": {"type": "object"}}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    read: list[str | None] = []

    async def react(task: Any, llm: agl.LLM) -> float:
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            answer = await client.chat.completions.create(
                model=llm.model, messages=[{"role": "user", "content": task["text"]}], stop=["Z", "Observation:"], max_tokens=64,
                tools=[tool], tool_choice="auto", parallel_tool_calls=False, response_format=shape,
            )  # type: ignore[call-overload]  # fmt: skip
        read.append(answer.choices[0].message.content)
        return 1.0

    with judge_server(lambda body: '{"look": 1}Observation: it is made up. Z') as server:
        more = {"steps": 1, "tasks_per_step": 1, "algorithm": "sft"}
        agl.train(react, tasks=TASKS, **settings(model, tmp_path, server, **more))
    assert read == ['{"look": 1}']
    [body] = server.bodies
    assert {name: body.get(name) for name in ("tool_choice", "parallel_tool_calls", "response_format", "stop", "max_tokens")} == {
        "tool_choice": "auto", "parallel_tool_calls": False, "response_format": shape, "stop": None, "max_tokens": None,
    }  # fmt: skip


FAILURES = {
    "answered 400": lambda body: JSONResponse({"error": {"message": "no such model"}}, 400),
    "A token limit cut off the answer": lambda body: JSONResponse(
        {"choices": [{"message": {"role": "assistant", "content": "abc"}, "finish_reason": "length"}]}
    ),
    "returned no message": lambda body: JSONResponse({"choices": [{"text": "abc"}]}),
    "neither content nor tool calls": lambda body: "",
}


@pytest.mark.parametrize("message", FAILURES)
def test_a_teacher_that_does_not_answer_is_named(model: str, tmp_path: Path, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_logprobs, "FIRST_PAUSE", 0.001)
    with judge_server(FAILURES[message]) as server:
        more = {"tasks_per_step": 1, "runner": {"concurrency": 1, "on_failure": "drop"}}
        with pytest.raises(AgentError, match=f"All 1 rollouts of the first step failed.*demonstration.*{message}"):
            agl.train(solve, tasks=TASKS, **settings(model, tmp_path, server, **more))


AWAY = {
    r"answered 503: .*, 5 times\. Check the server of the teacher, then resume the run": JSONResponse({"error": "busy"}, 503),
    r"answered 401: .*no credit.*Check teacher\.engine and teacher\.model, then resume the run": JSONResponse({"error": "no credit"}, 401),
    r"answered with no JSON object \(text/html; charset=utf-8\)": HTMLResponse("<p>Log in first</p>"),
}


@pytest.mark.parametrize("message", AWAY)
def test_a_teacher_that_stays_away_or_refuses_all_stops_the_run_which_continues_later(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: JudgeServer, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prompt_logprobs, "FIRST_PAUSE", 0.001)
    usual, asked = server.answer, 0

    def away_after_the_first_step(body: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return AWAY[message] if asked > 3 else usual(body)

    server.answer = away_after_the_first_step
    arguments = settings(model, tmp_path, server, steps=2, algorithm="sft", checkpoints={"every": 1})
    with pytest.raises(EngineError, match=message):
        agl.train(solve, tasks=TASKS, **arguments)
    assert not [record for record in caplog.records if record.exc_info]
    (folder,) = tmp_path.glob("*-run")
    server.answer = usual
    run = agl.train(solve, tasks=TASKS, resume=folder, **arguments)
    assert [row["trained_tokens"] for row in rows(run)] == [27, 18]


WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    r"teacher\.engine 'torch' cannot answer messages\. Run `agl serve": (UnsupportedSetting, {"teacher": {"model": "MODEL"}}),
    r"algorithm\.demonstrated_steps is set, but there is no \[teacher\]": (ConfigError, {}),
    r"collection\.max_staleness is 1, and algorithm\.demonstrated_steps": (ConfigError, {"collection": {"max_staleness": 1}}),
    r"collection\.filter is 'nonzero_variance'": (ConfigError, {"collection": {"filter": "nonzero_variance"}}),
    r"Algorithm 'sft' has no demonstrations": (ConfigError, {"algorithm": "sft"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_setting_is_an_error_before_the_run(model: str, tmp_path: Path, message: str) -> None:
    error, more = WRONG[message]
    more = {key: {"model": model} if key == "teacher" else value for key, value in more.items()}
    with pytest.raises(error, match=message):
        agl.train(solve, tasks=TASKS, **settings(model, tmp_path / "runs", None, **more))
    assert not (tmp_path / "runs").exists()
