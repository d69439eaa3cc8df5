"""The tool runner of Anthropic's JavaScript client, which keeps its conversation in a thread of the gateway."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Rollout, Sampling, Task

PROGRAM = Path(__file__).with_name("tool_runner.mjs")
PACKAGES = Path(os.environ.get("AGL_TEST_HARNESSES") or "nowhere", "node_modules")
SDK = PACKAGES / "@anthropic-ai" / "sdk"
pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not SDK.is_dir(), reason="no node, or AGL_TEST_HARNESSES names no folder with @anthropic-ai/sdk"
)


@pytest.mark.parametrize("way", ["plain", "stream"])
async def test_the_tool_runner_in_javascript_runs_on_one_chain_of_sampled_tokens(tmp_path: Path, way: str) -> None:
    make_tokenizer(tmp_path)
    shutil.copy(PROGRAM, tmp_path)
    (tmp_path / "node_modules").symlink_to(PACKAGES.resolve())
    store, engine = open_store("memory:"), ScriptedEngine(tmp_path, ["CALL weather(Oslo)", "CALL weather(Rome)", "It rains."])
    gateway = Gateway(store, engine)
    await gateway.start()
    try:
        attempt = await store.begin(Rollout(task=Task("1", None), mode="train", sampling=Sampling()), "test", lease=60)
        address = {"ANTHROPIC_BASE_URL": gateway.base_url.removesuffix("/v1"), "ANTHROPIC_API_KEY": attempt.key}
        program = await asyncio.create_subprocess_exec(
            "node", PROGRAM.name, way, cwd=tmp_path, env={**os.environ, **address}, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(program.communicate(), 60)
        assert output.decode() == "It rains.\n"
        calls = (await store.records(attempt.id)).calls
    finally:
        await gateway.stop()
    assert [(call.status, call.context) for call in calls] == [("completed", "first"), ("completed", "bridged"), ("completed", "bridged")]
    for text in ("Be kind.", "the secret is 7", "rain in Oslo", "rain in Rome"):
        assert text in engine.asked[-1].prompt
