"""Agents whose reward depends on their prompts, and a model that improves these."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.contracts.store import StoredRollout
from agentlightning.stores.common import open_store
from judge_server import JudgeServer

RULES = ("add", "carry", "check", "units")
TASKS = [{"id": f"{rule}{n}", "rule": rule} for rule in RULES for n in range(4)]
EVAL_TASKS = [{"id": f"eval-{rule}{n}", "rule": rule} for n in range(3) for rule in RULES]


async def ask(llm: agl.LLM, system: str, text: str) -> None:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=2)


async def follows_rules(task: Any, llm: agl.LLM) -> float:
    """Its reward depends on the prompt: a task needs one rule."""
    system = llm.prompt("system", default="You work.")
    await ask(llm, system, task["rule"])
    agl.note(f"The rule {task['rule']} was needed.")
    return float(task["rule"] in system)


async def asks_for_nothing(task: Any, llm: agl.LLM) -> float:
    await ask(llm, "fixed", task["rule"])
    return 1.0


async def changes_its_prompt(task: Any, llm: agl.LLM) -> float:
    await ask(llm, llm.prompt("system", default=f"Rule {task['rule']}"), "?")
    return 0.0


async def two_prompts(task: Any, llm: agl.LLM) -> float:
    text = llm.prompt("plan", default="Plan.") + llm.prompt("answer", default="Answer.")
    await ask(llm, text, task["rule"])
    agl.note(f"The rule {task['rule']} was needed.")
    return float(task["rule"] in text)


async def asks_twice(task: Any, llm: agl.LLM) -> float:
    await ask(llm, llm.prompt("system", default="First."), llm.prompt("system", default="Second."))
    return 0.0


async def fails_with_another_prompt(task: Any, llm: agl.LLM) -> float:
    system = llm.prompt("system", default="You work.")
    await ask(llm, system, task["rule"])
    if system != "You work.":
        raise ValueError("this prompt is too long")
    return 0.0


async def asks_for_more_sometimes(task: Any, llm: agl.LLM) -> float:
    await ask(llm, llm.prompt("system", default="You work."), llm.prompt("rare", default="?") if task["id"] == "units3" else "?")
    return 0.0


def adds_a_rule(body: dict[str, Any]) -> str:
    """Reads the old prompt and the notes, and adds the first rule that was needed and missing."""
    question = body["messages"][0]["content"]
    old = re.search(r"```\n(.*?)\n```", question, re.DOTALL)
    assert old is not None
    missing = [rule for rule in re.findall(r"The rule (\w+) was needed", question) if rule not in old[1]]
    return f"I would write:\n```\n{old[1]} {' '.join(missing[:1])}\n```"


def settings(model: str, folder: Path, server: JudgeServer | None, **more: Any) -> dict[str, Any]:
    algorithm: dict[str, Any] = {"name": "gepa", "validation": 4, **more.pop("algorithm", {})}
    if server is not None:
        algorithm["reflection"] = {"base_url": server.base_url, "model": "reflector", "retries": 1}
    return {
        "model": model, "folder": folder, "steps": 6, "tasks_per_step": 3, "algorithm": algorithm, "progress": False,
        "sampling": {"max_tokens": 2}, **more,
    }  # fmt: skip


def stored(folder: Path, **which: Any) -> list[StoredRollout]:
    async def read() -> list[StoredRollout]:
        store = open_store(str(folder / "store.db"))
        states, _ = await store.list(limit=1000, **which)
        rollouts = [await store.read(state.rollout.id) for state in states]
        await store.close()
        return rollouts

    return asyncio.run(read())
