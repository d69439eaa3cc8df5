"""What the tests of the page share: real runs of a tiny model, a store with hostile text, and the page served by a real `agl view`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.contracts.store import LightningStore
from agentlightning.types import Call, Completion, Reward, Rollout, Sampling, Span, Task

TOKEN = "token-of-the-page-tests"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
NO_CHROMIUM = "no Chromium on this machine: apt-get install chromium"
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><a href='javascript:window.ran=1'>link</a>"
TASKS = [{"id": f"t{n}", "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two", "b", "c"])]
LOOKUP = {"type": "function", "function": {"name": "lookup", "description": "Looks a word up.", "parameters": {"type": "object"}}}


async def solve(task: Any, llm: agl.LLM) -> float:
    """Ask twice, with a tool on offer. The more letters in the last reply, the better."""
    messages: list[Any] = [{"role": "system", "content": "Write letters."}, {"role": "user", "content": task["text"]}]
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        for _ in range(2):
            answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8, tools=[LOOKUP])
            text = answer.choices[0].message.content or ""
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    return sum(character.isalpha() for character in text[:8]) / 8


def train(model: str, folder: Path, **more: Any) -> agl.Run:
    """Train two steps."""
    settings: dict[str, Any] = {"steps": 2, "tasks_per_step": 2, "name": "letters", "eval": {"every": 1}, "progress": False, **more}
    return agl.train(
        solve, tasks=TASKS[:4], model=model, folder=folder, eval_tasks=TASKS, algorithm=agl.LightningRL(group_size=4),
        trainer={"name": "torch", "lr": 1e-3}, **settings,
    )  # fmt: skip


async def fill(store: LightningStore, count: int = 1, text: str = HOSTILE) -> list[Rollout]:
    """Record rollouts of an agent with a tool, which returned and was told some text."""
    rollouts = [Rollout(task=Task(f"task {n}", {"question": f"{text} {n}"}), mode="production") for n in range(count)]
    for rollout in rollouts:
        attempt = await store.begin(rollout, "worker", lease=60)
        agent = Span(attempt_id=attempt.id, kind="agent", name=f"agent {text}", started=1.0, ended=4.0)
        call = Call(
            id=f"call-{rollout.id}", attempt_id=attempt.id, index=0, status="completed", choices=1, context="first", tools=1, started=1.5,
            ended=2.5, messages=[{"role": "user", "content": text}], tool_schemas=[LOOKUP],
        )  # fmt: skip
        llm = Span(attempt_id=attempt.id, kind="llm", name="m", parent_id=agent.id, call_id=call.id, agent="writer", started=1.5, ended=2.5)
        attributes = {"input": {"word": text}, "output": text}
        tool = Span(attempt_id=attempt.id, kind="tool", name="lookup", parent_id=agent.id, started=2.6, ended=3.0, attributes=attributes)
        message = {"role": "assistant", "content": text, "tool_calls": [{"function": {"name": "lookup", "arguments": '{"word": 1}'}}]}
        completion = Completion(
            call_id=call.id, attempt_id=attempt.id, prompt_ids=[1, 2, 3], response_ids=[4, 5], logprobs=[-0.1, -2.5], versions=[0, 0],
            sampling=Sampling(), finish_reason="stop", message=message,
        )  # fmt: skip
        await store.record([call, completion, agent, llm, tool, Reward(attempt_id=attempt.id, value=0.5, name="return")])
        await store.finish(attempt.id, "succeeded")
    return rollouts


def served(folder: Path, *arguments: str) -> AbstractContextManager[str]:
    """Run `agl view` in a folder, and yield the link that it prints."""
    return _link(folder, "Open ", "view", *arguments)


def served_run(folder: Path, run: str) -> AbstractContextManager[str]:
    """Run `agl serve` in a folder, and yield the link of its page."""
    return _link(folder, "page", "serve", run)


@contextmanager
def _link(folder: Path, head: str, *arguments: str) -> Iterator[str]:
    command = [str(Path(sys.executable).with_name("agl")), *arguments, "--port", "0"]
    environment = {**os.environ, "AGL_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith(head)), "")
        assert "http://127.0.0.1:" in line, line
        yield line.removeprefix(head).strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        process.stdout.close()


def client(link: str, token: str | None = TOKEN) -> httpx.Client:
    """A client of the API."""
    url = urlsplit(link)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{url.scheme}://{url.netloc}", headers=headers, timeout=30)


def open_page(page: Any, link: str, address: str = "") -> None:
    """Open the page with its token, and then another view."""
    page.goto(link)
    page.wait_for_selector("h1")
    if address:
        page.evaluate("address => { location.hash = address }", address)


def expect_rows(page: Any, count: int) -> None:
    """Wait until the table has so many rows."""
    from playwright.sync_api import expect

    expect(page.locator("tbody tr")).to_have_count(count, timeout=20_000)


def nameless(page: Any) -> list[str]:
    """The controls of a page that a screen reader cannot name."""
    script = """() => [...document.querySelectorAll('button, a, input, select, textarea')]
        .filter(it => !(it.ariaLabel || it.textContent.trim() || it.title || it.labels?.length)).map(it => it.outerHTML)"""
    return page.evaluate(script)


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in another thread, because Playwright keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
