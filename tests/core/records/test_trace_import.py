"""Traces of other tools become demonstrations or tasks, and whatever cannot be read is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.contracts.store import StoredRollout
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.stores.messages import messages_of
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.training.metrics import read_metrics
from agentlightning_torch.testing import tiny_model

TOOLS = [
    {"type": "function", "function": {"name": "stock", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}}},
]
ASKED = [{"role": "system", "content": "You run a shop."}, {"role": "user", "content": "How many lamps?"}]
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "lamp"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}
ANSWER = {"role": "assistant", "content": "We have 7."}


def langsmith(folder: Path) -> Path:
    """Runs as LangChain's tracer makes them, one in a line, as a bulk export writes them."""
    collector = RunCollectorCallbackHandler()
    collector._schema_format = "original+chat"  # that of LangSmith's own tracer
    tool_call = {"name": "stock", "args": {"item": "lamp"}, "id": "c1"}
    model = FakeMessagesListChatModel(responses=[AIMessage("", tool_calls=[tool_call]), AIMessage("We have 7.")])

    def agent(task: dict[str, str]) -> dict[str, Any]:
        history: list[Any] = [SystemMessage("You run a shop."), HumanMessage(task["question"])]
        called = model.bind(tools=TOOLS).invoke(history)
        return {"answer": model.bind(tools=TOOLS).invoke([*history, called, ToolMessage("7", tool_call_id="c1")]).content}

    RunnableLambda(agent).invoke({"question": "How many lamps?"}, config={"callbacks": [collector]})
    (root,) = collector.traced_runs
    runs = [json.loads(run.model_dump_json(exclude={"child_runs", "parent_run"})) for run in [root, *root.child_runs]]
    for run in runs[1:]:
        run["run_type"] = "llm"  # so LangSmith's own tracer calls it
        run["extra"]["invocation_params"]["tools"] = TOOLS  # as a model with tools has them
    runs[0]["feedback_stats"] = {"correct": {"n": 2, "avg": 1.0}}
    file = folder / "runs.jsonl"
    file.write_text("".join(f"{json.dumps(run)}\n" for run in runs))
    return file


def langfuse(folder: Path) -> Path:
    """A trace as `GET /api/public/traces/ID` and the export of the page write it."""
    common = {"traceId": "t-1", "level": "DEFAULT", "statusMessage": None, "parentObservationId": "o-0", "model": "gpt-4o"}
    observations = [
        {**common, "id": "o-2", "type": "GENERATION", "name": "chat", "startTime": "2026-05-04T10:00:02.000Z",
         "input": json.dumps({"messages": [*ASKED, CALLED, RESULT], "tools": TOOLS}), "output": ANSWER},
        {**common, "id": "o-0", "type": "SPAN", "name": "agent", "startTime": "2026-05-04T10:00:00.000Z", "input": None, "output": None},
        {**common, "id": "o-1", "type": "GENERATION", "name": "chat", "startTime": "2026-05-04T10:00:01.000Z",
         "input": {"messages": ASKED, "tools": TOOLS}, "output": CALLED},
        {**common, "id": "o-3", "type": "GENERATION", "name": "chat", "startTime": "2026-05-04T10:00:03.000Z", "level": "ERROR",
         "statusMessage": "rate limit", "input": ASKED, "output": None},
    ]  # fmt: skip
    scores = [{"id": "s-1", "name": "correct", "value": 1, "dataType": "NUMERIC"}, {"id": "s-2", "name": "tone", "value": "kind"}]
    trace = {
        "id": "t-1", "name": "shop", "timestamp": "2026-05-04T10:00:00.000Z", "input": {"question": "How many lamps?"},
        "output": "We have 7.", "tags": [], "observations": observations, "scores": scores,
    }  # fmt: skip
    file = folder / "traces.json"
    file.write_text(json.dumps([trace], indent=2))
    return file


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value if isinstance(value, str) else json.dumps(value)}} for key, value in values.items()]


def _span(number: int, name: str, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": f"eee19b7ec3c1b17{number}", "name": name,
        "startTimeUnixNano": str(1_777_888_000_000_000_000 + number * 1_000_000), "endTimeUnixNano": "1777888001000000000",
        "attributes": _attributes(attributes), **more,
    }  # fmt: skip


def otlp(folder: Path) -> Path:
    """Lines of the collector's file exporter: the first call by the GenAI convention, the second by OpenInference."""
    genai = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o",
        "gen_ai.system_instructions": [{"type": "text", "content": "You run a shop."}],
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "How many lamps?"}]}],
        "gen_ai.output.messages": [
            {"role": "assistant", "finish_reason": "tool_calls",
             "parts": [{"type": "tool_call", "id": "c1", "name": "stock", "arguments": {"item": "lamp"}}]}
        ],
        "gen_ai.tool.definitions": TOOLS,
    }  # fmt: skip
    flat = "llm.input_messages."
    openinference = {
        "openinference.span.kind": "LLM", f"{flat}0.message.role": "system", f"{flat}0.message.content": "You run a shop.",
        f"{flat}1.message.role": "user", f"{flat}1.message.contents.0.message_content.text": "How many lamps?",
        f"{flat}2.message.role": "assistant", f"{flat}2.message.tool_calls.0.tool_call.id": "c1",
        f"{flat}2.message.tool_calls.0.tool_call.function.name": "stock",
        f"{flat}2.message.tool_calls.0.tool_call.function.arguments": '{"item": "lamp"}',
        f"{flat}3.message.role": "tool", f"{flat}3.message.content": "7", f"{flat}3.message.tool_call_id": "c1",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "We have 7.",
        "llm.tools.0.tool.json_schema": TOOLS[0],
    }  # fmt: skip
    bare = {"gen_ai.operation.name": "chat"}
    spans = [
        _span(2, "ChatCompletion", openinference),
        _span(1, "chat gpt-4o", genai),
        _span(3, "agent", {}),
        _span(4, "chat gpt-4o", bare),
    ]
    file = folder / "otlp.jsonl"
    lines = [{"resourceSpans": [{"scopeSpans": [{"scope": {"name": "a"}, "spans": [span]}]}]} for span in spans]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def messages(folder: Path) -> Path:
    """Lines for fine-tuning, with lines that nobody can read."""
    lines = [
        json.dumps({"messages": [*ASKED, CALLED, RESULT, ANSWER], "tools": TOOLS, "reward": 1}),
        "{broken",
        json.dumps({"messages": [{"role": "user", "content": "no reply"}]}),
        json.dumps({"prompt": "a", "completion": "b"}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]}),
        "7",
    ]
    file = folder / "messages.jsonl"
    file.write_text("\n".join(lines))
    return file


FORMATS = {"langsmith": langsmith, "langfuse": langfuse, "otlp": otlp, "messages": messages}
UNREAD: dict[str, list[str]] = {
    "langsmith": [],
    "langfuse": ["record 1 (observation o-3): the call failed: rate limit"],
    "otlp": ["otlp.jsonl:4 (span eee19b7ec3c1b174): the span has no messages"],
    "messages": [
        "messages.jsonl:2: the line is not JSON",
        "messages.jsonl:3: no reply of the assistant follows a message",
        "messages.jsonl:4: it is of no known format (keys: 'prompt', 'completion')",
        "messages.jsonl:5: a message has content of the type 'image_url', and only text is read",
        "messages.jsonl:6: it is a int, not an object",
    ],
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each message."""
    monkeypatch.setenv("COLUMNS", "400")


def command(*arguments: str | Path) -> str:
    result = CliRunner().invoke(build(), ["store", "import-traces", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def stored(address: str) -> list[StoredRollout]:
    async def read() -> list[StoredRollout]:
        store = open_store(address)
        try:
            return [await store.read(state.rollout.id) for state in (await store.list(limit=100))[0]]
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.mark.parametrize("name", FORMATS)
def test_a_trace_becomes_demonstrated_replies_in_the_models_tokens(name: str, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    address = f"sqlite:{tmp_path / 'to.db'}"
    arguments = (FORMATS[name](tmp_path), "--to", address, "--model", tmp_path / "model", "--reward", "0.5")
    output = command(*arguments)
    assert "Imported 1 traces with 2 replies into" in output
    assert len([line for line in output.splitlines() if line.startswith("Not imported: ")]) == len(UNREAD[name])
    for unread in UNREAD[name]:
        assert unread in output
    ((state, (records,)),) = stored(address)
    learned = trajectory(state, (records,))
    assert (state.status, learned.reward) == ("succeeded", 0.5 if name == "otlp" else 1.0)
    assert [transition.demonstrated for transition in learned.transitions] == [True, True]
    assert [call.context for call in records.calls] == ["first", "bridged"]
    for completion in records.completions:
        assert completion.logprobs is None
        assert (completion.versions == -1).all()
        assert completion.tokenizer
    assert records.completions[1].message == ANSWER
    assert "nothing was sampled" in records.spans[0].name
    sent = messages_of(records, records.calls[1].id)
    assert sent is not None
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
    first, second = records.completions
    joined = np.concatenate([first.prompt_ids, first.response_ids])
    np.testing.assert_array_equal(second.prompt_ids[: len(joined)], joined)
    assert "1 were there already" in command(*arguments)
    assert len(stored(address)) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_trace_becomes_a_task(name: str, tmp_path: Path) -> None:
    output = command(FORMATS[name](tmp_path), "--tasks", tmp_path / "tasks.jsonl")
    assert "Wrote 1 tasks" in output
    (line,) = (tmp_path / "tasks.jsonl").read_text().splitlines()
    task = json.loads(line)
    expected = {"question": "How many lamps?"} if name.startswith("lang") else {"messages": ASKED}
    assert task["input"] == expected
    assert task["id"]


def test_imported_demonstrations_are_trained_by_sft_without_an_agent(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    lines = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}], "reward": 1} for n in range(6)
    ]
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    address = f"sqlite:{tmp_path / 'demonstrations.db'}"
    command(tmp_path / "lines.jsonl", "--to", address, "--model", model)
    run = agl.train(
        replay={"store": address, "mode": "train"}, model=model, folder=tmp_path / "runs", steps=9, tasks_per_step=2,
        algorithm={"name": "sft"}, trainer={"name": "torch", "lr": 1e-2}, progress=False,
    )  # fmt: skip
    rows = read_metrics(run.folder)
    assert [row["trained_tokens"] for row in rows] == [6.0] * 3, "'N', '!', and the end mark of two rollouts; each is trained once"
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_demonstrations_are_never_trained_by_an_algorithm_with_ratios(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    address = f"sqlite:{tmp_path / 'demonstrations.db'}"
    command(tmp_path / "lines.jsonl", "--to", address, "--model", model, "--reward", "1")
    run = agl.train(
        replay={"store": address, "mode": "train"}, model=model, folder=tmp_path / "runs", steps=1, tasks_per_step=1,
        algorithm={"name": "lightning", "advantage": "reinforce", "group_size": 1}, progress=False,
    )  # fmt: skip
    (row,) = read_metrics(run.folder)
    assert row["trained_tokens"] == 0
    assert row["untrained_reason"].startswith("demonstrated, not sampled")


def test_a_reply_that_the_model_cannot_write_is_named(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|im_end|>c"}]}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line))
    output = command(tmp_path / "lines.jsonl", "--to", f"sqlite:{tmp_path / 'to.db'}", "--model", model)
    assert "Imported 0 traces" in output
    assert "it has an end mark in the middle of its text" in output
    assert stored(f"sqlite:{tmp_path / 'to.db'}") == []


def test_wrong_arguments_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    empty = tmp_path / "empty.jsonl"
    assert "Nothing says what the traces become" in command(empty)
    assert "--to and --model belong together" in command(empty, "--to", "sqlite:a.db")
    assert "No model call can be read in" in command(empty, "--tasks", tmp_path / "tasks.jsonl")
    assert "binary.json cannot be read" in command(tmp_path / "binary.json", "--tasks", tmp_path / "tasks.jsonl")
    assert "exists. Name a new file" in command(empty, "--tasks", empty)
    assert not (tmp_path / "tasks.jsonl").exists()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}], **more}


def generation(id: str, text: str = "ok") -> dict[str, Any]:
    return {"id": id, "type": "GENERATION", "input": [{"role": "user", "content": "hi"}], "output": text}


MALFORMED = {
    "its tools are a int": said("a", tools=5),
    "a tool is a int": said("a", tools=[5]),
    "the tool calls of a message are a int": {"messages": [{"role": "user"}, {"role": "assistant", "tool_calls": 5}]},
    "it is a list": [1],
    "an observation is a NoneType": {"id": "t1", "observations": [{"id": "s", "type": "SPAN"}, None]},
    "its observations are a dict": {"id": "t2", "observations": {"a": 1}},
    "a score is a NoneType": {"id": "t3", "observations": [generation("o3")], "scores": [{"value": 1}, None]},
    "its scores are a int": {"id": "t4", "observations": [generation("o4")], "scores": 1},
    "a feedback good is a NoneType": {"id": "t5", "run_type": "chain", "feedback_stats": {"good": None}},
    "its feedback_stats are a list": {"id": "t6", "run_type": "chain", "feedback_stats": [1]},
    "its reward is '0', not a finite number": said("a", reward="0"),
    "its reward is nan, not a finite number": said("a", reward=float("nan")),
    "its score is inf, not a finite number": {"id": "t7", "observations": [generation("o7")], "scores": [{"value": float("inf")}]},
    "its id 'same' is also that of": said("b", id="same"),
    "it was read already": {**generation("twice"), "traceId": "t8"},
}


def test_whatever_is_malformed_is_named_and_the_rest_is_imported(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    good = [said("first", id="same"), {**generation("twice"), "traceId": "t8"}]
    (tmp_path / "lines.jsonl").write_text("\ufeff" + "".join(f"{json.dumps(line)}\n" for line in [*good, *MALFORMED.values()]))
    address = f"sqlite:{tmp_path / 'to.db'}"
    output = command(tmp_path / "lines.jsonl", "--to", address, "--model", model, "--reward", "1")
    named = [line for line in output.splitlines() if line.startswith("Not imported: ")]
    for line, (reason, place) in zip(named, zip(MALFORMED, range(3, 3 + len(MALFORMED)), strict=True), strict=True):
        assert f"lines.jsonl:{place}" in line
        assert reason in line
    assert "Imported 2 traces with 2 replies" in output
    assert {state.rollout.task.id for state, _ in stored(address)} == {"same", "t8"}


def test_a_trace_gets_its_reward_later(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    (tmp_path / "lines.jsonl").write_text(json.dumps(said("a")))
    address = f"sqlite:{tmp_path / 'to.db'}"
    arguments = (tmp_path / "lines.jsonl", "--to", address, "--model", model)
    assert "1 have no reward" in command(*arguments)
    assert "1 were there already. 1 have no reward" in command(*arguments)
    assert "1 were there already, 1 now have a reward." in command(*arguments, "--reward", "1")
    assert command(*arguments, "--reward", "0").endswith("1 were there already.\n")
    ((state, attempts),) = stored(address)
    assert trajectory(state, attempts).reward == 1.0
    assert "--reward is nan" in command(*arguments, "--reward", "nan")


def test_what_an_interrupted_import_left_is_imported_again(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", context=2048).path
    (tmp_path / "lines.jsonl").write_text("".join(f"{json.dumps(said(text, reward=1))}\n" for text in "ab"))
    address = f"sqlite:{tmp_path / 'to.db'}"
    arguments = (tmp_path / "lines.jsonl", "--to", address, "--model", model)
    command(*arguments)

    async def interrupt() -> None:
        store = open_store(address)
        (state, *_), _ = await store.list(limit=1)
        await store.delete([state.rollout.id])
        await store.begin(state.rollout, "an import that ended here", lease=600.0)
        await store.close()

    asyncio.run(interrupt())
    assert "Imported 1 traces with 1 replies" in command(*arguments)
    assert [(state.status, len(records.completions)) for state, (records,) in stored(address)] == [("succeeded", 1)] * 2
