"""`agl train` with its rollouts in PostgreSQL, whole, on a tiny model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_schemas import NUMBERS

import agentlightning as agl
from agentlightning.errors import ConfigError
from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder
from agentlightning_postgres.testing import Server
from agentlightning_torch.testing import tiny_model

TASKS = [{"id": str(number), "question": f"{number}"} for number in range(2)]


async def agent(task: dict[str, str], llm: agl.LLM) -> float:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["question"]}])
    return float(len(answer.choices[0].message.content or "") % 3)


@pytest.mark.slow
def test_each_run_has_a_schema_of_its_own_and_resumes_from_it(server: Server, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny").path
    address = server.local().replace("&schema=agentlightning", "")
    common = {
        "model": model, "folder": tmp_path, "name": "pg", "tasks_per_step": 2, "algorithm": agl.LightningRL(group_size=2),
        "progress": False,
        "trainer": {"name": "torch", "lr": 1e-3}, "sampling": {"max_tokens": 4}, "store": address,
    }  # fmt: skip
    run = agl.train(agent, tasks=TASKS, steps=1, **common)
    folder = RunFolder(run.folder)
    assert folder.store_address == f"{address}&schema={folder.name}"
    assert not folder.store.exists()
    agl.train(agent, tasks=TASKS, steps=2, resume=run.folder, **common)
    states = asyncio.run(_states(folder.store_address))
    assert [state.status for state in states] == ["succeeded"] * 8
    show = [sys.executable, "-m", "agentlightning", "show", str(run.folder)]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert shown.count("succeeded") >= 8
    assert "postgresql" not in json.dumps(folder.read_result())
    with pytest.raises(ConfigError, match=r"has rollouts, and a run needs an empty store"):
        agl.train(agent, tasks=TASKS, steps=1, **{**common, "store": folder.store_address})


async def _states(address: str) -> list[object]:
    store = open_store(address)
    try:
        return list((await store.list())[0])
    finally:
        await store.close()


async def test_agl_rollout_records_into_postgresql(server: Server) -> None:
    address = server.local(f"test_{next(NUMBERS)}")
    async with agl.rollout({"question": "?"}, store=address):
        agl.reward(1.0)
    (state,) = await _states(address)
    assert state.status == "succeeded"  # type: ignore[attr-defined]
