"""Command-line coding agents, unchanged, as rollouts: every call is recorded whole, and continues an earlier one or says why not.

`make test-harnesses` installs the agents with npm and runs these tests. A scripted engine plays the model.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.contracts.store import AttemptRecords
from agentlightning.gateway import Gateway
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Rollout, Sampling, Task

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not os.environ.get("AGL_TEST_HARNESSES"), reason="AGL_TEST_HARNESSES names no folder of npm's programs")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}{% for call in message.tool_calls or () %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "Find the secret"
SUMMARY = "Summary: the note is long."


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def results(prompt: str) -> list[str]:
    """The results of tools after the question."""
    return prompt.rpartition(QUESTION)[2].split("<|im_start|>tool\n")[1:]


async def run(
    tmp_path: Path,
    agent: str,
    script: Callable[[str], str],
    task: dict[str, Any] | None = None,
    *,
    delay: float = 0.0,
    timeout: float = 110,
) -> AttemptRecords:
    """The records of one rollout of an agent, in a folder with a note."""
    make_tokenizer(tmp_path / "tokenizer")
    work = tmp_path / "work"
    work.mkdir()
    (work / "note.txt").write_text("the secret is 42\n")
    store = open_store("memory:")
    engine = ScriptedEngine(tmp_path / "tokenizer", lambda prompt, _: script(prompt), context_length=400_000, chunk=32, delay=delay)
    gateway = Gateway(store, engine, rendering=RenderingSettings(chat_template=TEMPLATE))
    await gateway.start()
    wide = {"context": 400_000, "codex": {"model_context_window": 400_000}}  # the tokens of this tokenizer are bytes
    fields = {"question": QUESTION, "answer": "42", **wide, **(task or {})}
    rollout = Rollout(task=Task("1", fields), mode="train", sampling=Sampling(), max_attempts=1)
    await store.add([rollout])
    with CommandAgent(f"{sys.executable} {HERE / agent}_agent.py", folder=work) as command:
        runner = asyncio.create_task(Runner(store, command, gateway.llm, RunnerSettings(timeout=timeout)).run())
        cursor = 0
        while (await store.list(status=["queued", "running"]))[0]:
            cursor = await store.wait(cursor)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
    await gateway.stop()
    _, attempts = await store.read(rollout.id)
    return attempts[-1]


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ.get("AGL_TEST_HARNESSES", "")).resolve() / "node_modules" / ".bin"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def calls(records: AttemptRecords) -> list[tuple[str, str, str]]:
    """(status, context, the tool it called or the start of its text) of each call with a reply."""
    replies = {completion.call_id: completion.message for completion in records.completions}
    rows: list[tuple[str, str, str]] = []
    for record in sorted(records.calls, key=lambda record: record.index):
        message: Any = replies.get(record.id) or {}
        tools = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        rows.append((record.status, str(record.context), tools[0] if tools else str(message.get("content"))))
    return rows


async def test_codex_calls_tools_and_a_sub_agent(tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        if "user\ncount the files" in prompt:
            return "There is one file."
        match results(prompt):
            case []:
                return call("exec_command", cmd="cat note.txt")
            case [note]:
                assert "the secret is 42" in note
                return call("multi_agent_v1__spawn_agent", message="count the files")
            case [_, agent]:
                [target] = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", agent)[:1]
                return call("multi_agent_v1__wait_agent", targets=[target])
            case _:
                return "The secret is 42."

    records = await run(tmp_path, "codex", script)
    assert (records.attempt.status, [reward.value for reward in records.rewards]) == ("succeeded", [1.0])
    rows = calls(records)
    assert sorted(rows) == sorted(
        [
            ("completed", "first", "exec_command"),
            ("completed", "bridged", "multi_agent_v1__spawn_agent"),
            ("completed", "bridged", "multi_agent_v1__wait_agent"),
            ("completed", "first", "There is one file."),
            ("completed", "bridged", "The secret is 42."),
        ]
    )


async def test_codex_compacts_its_history_and_each_call_says_why_it_starts_afresh(tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        if SUMMARY in prompt:
            return "The secret is 42."
        if '"name"' not in prompt.partition("<|im_end|>")[0]:
            return SUMMARY
        return call("exec_command", cmd="seq 1 2000; cat note.txt") if len(results(prompt)) < 3 else "The secret is 42."

    records = await run(tmp_path, "codex", script, {"codex": {"model_auto_compact_token_limit": 60_000, "model_context_window": 300_000}})
    assert (records.attempt.status, [reward.value for reward in records.rewards]) == ("succeeded", [1.0])
    rows = calls(records)
    assert {row[1] for row in rows} <= {"first", "bridged", "tools changed", "trimmed", "edited"}
    assert rows[1][:2] == ("completed", "bridged")
    assert ("completed", "tools changed", SUMMARY) in rows


async def test_opencode_calls_tools_and_a_sub_agent_over_messages(tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        if '"name"' not in prompt.partition("<|im_end|>")[0]:
            return "A title"
        if "count the files" in prompt and QUESTION not in prompt:
            return "There is one file."
        match results(prompt):
            case []:
                return call("bash", command="cat note.txt", description="read")
            case [note]:
                assert "the secret is 42" in note
                return call("task", description="count", prompt="count the files", subagent_type="general")
            case _:
                return "The secret is 42."

    records = await run(tmp_path, "opencode", script)
    assert (records.attempt.status, [reward.value for reward in records.rewards]) == ("succeeded", [1.0])
    assert sorted(calls(records)) == sorted(
        [
            ("completed", "first", "A title"),
            ("completed", "first", "bash"),
            ("completed", "bridged", "task"),
            ("completed", "first", "There is one file."),
            ("completed", "bridged", "The secret is 42."),
        ]
    )


async def test_opencode_compacts_its_history_and_each_call_says_why_it_starts_afresh(tmp_path: Path) -> None:
    def script(prompt: str) -> str:
        if '"name"' not in prompt.partition("<|im_end|>")[0]:
            return "A title" if "title" in prompt[:3000].lower() else SUMMARY
        if SUMMARY in prompt or len(results(prompt)) > 3:
            return "The secret is 42."
        return call("bash", command="seq 1 2000; cat note.txt", description="read")

    records = await run(tmp_path, "opencode", script, {"context": 45_000})
    assert (records.attempt.status, [reward.value for reward in records.rewards]) == ("succeeded", [1.0])
    rows = calls(records)
    assert {row[1] for row in rows} <= {"first", "bridged", "tools changed", "trimmed", "edited"}
    assert any(row[2] == SUMMARY for row in rows)
    assert any(row[1] == "bridged" for row in rows)


@pytest.mark.parametrize("agent", ["codex", "opencode"])
async def test_what_an_agent_sampled_before_it_was_killed_is_recorded(tmp_path: Path, agent: str) -> None:
    def script(prompt: str) -> str:
        if '"name"' not in prompt.partition("<|im_end|>")[0]:
            return "A title"
        name, arguments = (
            ("exec_command", {"cmd": "cat note.txt"}) if agent == "codex" else ("bash", {"command": "cat note.txt", "description": "r"})
        )
        return call(name, **arguments) if not results(prompt) else "never " * 4000

    records = await run(tmp_path, agent, script, delay=0.6, timeout=25)
    assert records.attempt.status == "timed_out"
    rows = calls(records)
    assert ("completed", "first", "exec_command" if agent == "codex" else "bash") in rows
    [cut] = [record for record in records.calls if record.status != "completed"]
    [reply] = [completion for completion in records.completions if completion.call_id == cut.id]
    assert len(reply.response_ids) > 32
    assert cut.context == "bridged"


@pytest.mark.parametrize("agent", ["codex", "opencode"])
def test_the_page_has_the_agents_that_these_tests_run(agent: str) -> None:
    text = (HERE / f"{agent}_agent.py").read_text()
    assert text in (HERE.parents[1] / "docs" / "harnesses.md").read_text()
    assert shutil.which("codex" if agent == "codex" else "opencode")
