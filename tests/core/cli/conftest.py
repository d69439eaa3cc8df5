"""A run folder whose store was filled by hand, so that every number in `agl show` is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from agentlightning.cli.main import build
from agentlightning.contracts.store import LightningStore
from agentlightning.registry.registry import registry
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned
from agentlightning.types import Call, Completion, Reward, Rollout, Sampling, Span, Task

AGL = Callable[..., tuple[int, str]]


@pytest.fixture
def agl(monkeypatch: pytest.MonkeyPatch) -> AGL:
    """Run `agl ...`; the exit code and all that it wrote."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("AGL_DEBUG", raising=False)

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(build(), list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return call


def completion(call: Call, size: int, **more: object) -> Completion:
    return Completion(
        call_id=call.id,
        attempt_id=call.attempt_id,
        prompt_ids=[1, 2, 3],
        response_ids=list(range(10, 10 + size)),
        logprobs=[-0.25] * size,
        versions=[4] * size,
        sampling=Sampling(),
        finish_reason="stop",
        message={"role": "assistant", "content": "it is [five]", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]},
        **more,  # type: ignore[arg-type]
    )


async def fill(store: LightningStore) -> dict[str, Rollout]:
    """trained: two calls, one retried, spans; lost: a lost attempt and a failed one; val; queued."""
    made = {
        "trained": Rollout(task=Task("t1", {"question": "2+3?"}), mode="train", group="g", index=0, step=0, sampling=Sampling()),
        "failed": Rollout(task=Task("t1", {"question": "2+3?"}), mode="train", group="g", index=1, step=0, sampling=Sampling()),
        "eval": Rollout(task=Task("t2", "hard"), mode="eval", group="v", index=0, step=1, sampling=Sampling(temperature=0.0)),
    }
    for name, rollout in made.items():
        attempt = await store.begin(rollout, "worker-1", lease=60)
        first, second, third = (
            Call(id=f"{name}-call-{n}", attempt_id=attempt.id, index=n, status="completed", choices=1, context="first", started=1, ended=2)
            for n in range(3)
        )
        if name == "trained":
            agent = Span(attempt_id=attempt.id, kind="agent", name="solver", started=1, ended=9)
            llm = Span(attempt_id=attempt.id, kind="llm", name="m", parent_id=agent.id, call_id=first.id, agent="solver", started=2)
            tool = Span(attempt_id=attempt.id, kind="tool", name="add", parent_id=agent.id, started=3, ended=4, attributes={"result": 5})
            retried = Call(id="trained-call-r", attempt_id=attempt.id, index=3, status="completed", supersedes=third.id)
            asked = {"role": "user", "content": "What is [2]+3?"}
            tool_schemas = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
            first = replace(first, messages=[{"role": "system", "content": "Be exact."}, asked], tools=1, tool_schemas=tool_schemas)
            result = {"role": "tool", "content": "5", "tool_call_id": "t"}
            second = replace(second, after=first.id, messages=[[0, 3], result], tools=1, tools_from=first.id)
            refused = Call(id="trained-call-4", attempt_id=attempt.id, index=4, status="refused", detail="unknown tool_choice")
            await store.record([first, completion(first, 5), second, completion(second, 3), third, retried, refused, agent, llm, tool])
            await store.record([Reward(attempt_id=attempt.id, value=1.0, name="return")])
            await store.record([Reward(attempt_id=attempt.id, value=0.5, name="neat", span_id=tool.id)])
            await store.finish(attempt.id, "succeeded")
        elif name == "failed":
            await store.record([first, completion(first, 2)])
            await store.finish(attempt.id, "failed", error="ValueError: the calculator broke")
        else:
            await store.record([first, completion(first, 4), Reward(attempt_id=attempt.id, value=0.25, name="return")])
            await store.finish(attempt.id, "succeeded")
    made["queued"] = Rollout(task=Task("t3", "later"), mode="train", step=1)
    await store.add([made["queued"]])
    await store.close()
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, dict[str, Rollout]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGL_STORE", raising=False)
    folder = RunFolder.create("runs", "demo")
    folder.write_config('model = "no-such-model"\nagents = ["*"]\n')
    store = registry().load("stores", "sqlite")(folder.store_address)
    made = asyncio.run(fill(store))
    learned = Learned(returns=(1.0, 1.0), advantages=(0.75, None), trained=5, excluded={"no signal": 3})
    folder.write_batch(1, {made["trained"].id: learned})
    return folder, made
