"""A real model, `AGL_TEST_QWEN`: a folder of Qwen2.5-Coder-0.5B-Instruct. `make test-qwen FOLDER=...` runs these tests, for some minutes on
a CPU."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from qwen_agents import AGENTS

from agentlightning.config.schema import Config, load_config
from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.score import rollout_config

FOLDER = os.environ.get("AGL_TEST_QWEN", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="AGL_TEST_QWEN names no folder of Qwen2.5-Coder-0.5B-Instruct")
SMALL = {
    "engine": {"name": "torch", "max_batch": 8},
    "sampling": {"max_tokens": 48, "temperature": 0.05},
    "runner": {"timeout": 1500.0, "attempts": 1},
}


def read_calls(run: Path) -> dict[str, list[tuple[Any, Any]]]:
    """(call, completion) of each rollout, by the task's id."""

    async def read() -> dict[str, list[tuple[Any, Any]]]:
        store = open_store(RunFolder.open(run).store_address)
        try:
            states, _ = await store.list(limit=100)
            rollouts = [await store.read(state.rollout.id) for state in states]
        finally:
            await store.close()
        calls: dict[str, list[tuple[Any, Any]]] = {}
        for state, attempts in rollouts:
            for records in attempts:
                replies = {completion.call_id: completion for completion in records.completions}
                calls[state.rollout.task.id] = [(call, replies.get(call.id)) for call in sorted(records.calls, key=lambda call: call.index)]
        return calls

    return asyncio.run(read())


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any]]]:
    """The calls of each agent of `qwen_agents`, by its name."""
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"id": name, "agent": name}) + "\n" for name in AGENTS))
    config = Config(agent="qwen_agents:solve", tasks=str(folder / "tasks.jsonl"), model=FOLDER, folder=str(folder), path=".", **SMALL)  # type: ignore[arg-type]
    report = rollout_config(config)
    assert report.statuses == {"succeeded": len(AGENTS)}, report.error
    return read_calls(report.folder)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_an_agent_with_two_tools_calls_one_and_every_later_turn_is_bridged(calls: dict[str, list[tuple[Any, Any]]], name: str) -> None:
    first, *later = calls[name]
    assert first[1].message["tool_calls"][0]["function"]["name"] == "multiply"
    assert later
    assert [call.context for call, _ in calls[name]] == ["first", *(["bridged"] * len(later))]
    before = [*first[1].prompt_ids, *first[1].response_ids]
    assert later[0][1].prompt_ids[: len(before)].tolist() == before


def test_a_reply_ends_at_either_end_token(calls: dict[str, list[tuple[Any, Any]]]) -> None:
    ends = {151645, 151643}
    for replies in calls.values():
        for _, completion in replies:
            assert set(completion.sampling.stop_ids) >= ends
            assert not ends & set(completion.response_ids[:-1].tolist())


@pytest.mark.parametrize("preset", ["math", "rag", "text_to_sql", "demo"])
@pytest.mark.parametrize("renderer", ["auto", "chatml"])
def test_each_benchmark_s_agent_runs_and_its_later_turns_are_bridged(preset: str, renderer: str, tmp_path: Path) -> None:
    import dataclasses

    import agentlightning_benchmarks

    config = load_config(Path(agentlightning_benchmarks.__path__[0]) / preset / "cpu.toml")
    config = dataclasses.replace(config, model=FOLDER, folder=str(tmp_path), renderer=renderer, **SMALL)
    report = rollout_config(config, limit=2)
    assert report.statuses == {"succeeded": 2}, report.error
    contexts = [call.context for replies in read_calls(report.folder).values() for call, _ in replies]
    print(preset, renderer, report.reward, contexts)
    assert contexts
    assert {context for context in contexts if context != "first"} <= {"bridged"}
