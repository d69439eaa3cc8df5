"""Several policies in one run, whole: each agent's calls go to its policy, and each policy learns from its own replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from letters import TASKS, score
from openai import AsyncOpenAI
from safetensors.torch import load_file

import agentlightning as agl
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder

POLICIES: dict[str, Any] = {"writer": {"agents": ["write"]}, "editor": {"agents": ["edit*"]}}
LORA = {"name": "torch", "train": "lora", "lora_rank": 4, "lr": 1e-2}


async def ask(llm: agl.LLM, text: str, *, agent: str | None = None, model: str | None = None) -> str:
    headers = {} if agent is None else {"X-AGL-Agent": agent}
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0, default_headers=headers) as client:
        messages: list[Any] = [{"role": "user", "content": text}]
        answer = await client.chat.completions.create(model=model or llm.model, messages=messages, max_tokens=8)
    return answer.choices[0].message.content or ""


async def write_and_edit(task: Any, llm: agl.LLM) -> float:
    """The writer is known by the header of its requests, the editor by the model that it asks for."""
    draft = await ask(llm, task["text"], agent="write")
    return score(await ask(llm, f"edit {draft}", model="editor"))


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "folder": folder, "name": "two", "steps": 2, "tasks_per_step": 2, "policies": POLICIES, "trainer": LORA,
        "algorithm": agl.LightningRL(group_size=4), "progress": False, **more,
    }  # fmt: skip


async def completions(run: agl.Run) -> list[Any]:
    store = open_store(RunFolder(run.folder).store_address)
    try:
        states, _ = await store.list(limit=1000)
        records = [await store.records(state.winner.id) for state in states if state.winner is not None]
        return [completion for attempt in records for completion in attempt.completions]
    finally:
        await store.close()


async def test_each_policy_answers_its_agents_and_trains_on_its_own_replies(model, tmp_path):
    run = await agl.train_async(write_and_edit, tasks=TASKS, **settings(model, tmp_path, eval_tasks=TASKS[:2]))
    recorded = await completions(run)
    assert {completion.policy for completion in recorded} == {"writer", "editor"}
    last = {name: max(int(c.versions.max()) for c in recorded if c.policy == name) for name in POLICIES}
    assert last == {"writer": 2, "editor": 2}, "the last evaluation samples from the last version of both"
    rows = [row for row in read_metrics(run.folder) if row["step"] > 0]
    for row in rows:
        assert row["trained_tokens"] == row["writer/trained_tokens"] + row["editor/trained_tokens"] > 0
        assert row["mismatch_abs"] == max(row["writer/mismatch_abs"], row["editor/mismatch_abs"]) < 1e-4
        assert {"writer/loss", "editor/loss", "writer/grad_norm", "writer/reward", "editor/lr"} <= row.keys()
        assert "loss" not in row
    assert run.result["policies"]["writer"] == {"version": 2, "trained": True, "checkpoint": f"{run.result['checkpoint']}/writer"}
    for name in POLICIES:
        folder = run.folder / run.result["policies"][name]["checkpoint"]
        state = load_file(folder / "adapter_model.safetensors")
        assert any(value.abs().sum() > 0 for key, value in state.items() if "lora_B" in key)
