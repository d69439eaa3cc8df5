"""Processes of `agl` that a fault test starts, kills, and starts again, with an agent that writes down every answer it got."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

TOKEN = "secret"
AGENT = """
import json, os, signal, subprocess, sys, time
from types import SimpleNamespace
import httpx

def acknowledge(key, record):
    with open(os.environ["ACKNOWLEDGED"], "ab", buffering=0) as file:
        file.write(f"{key} {record}\\n".encode())

def ask(llm, messages):
    from openai import OpenAI
    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=messages, max_tokens=6)
    acknowledge(llm.api_key, answer.system_fingerprint)
    return answer.choices[0].message.content or ""

def ask_plainly(llm, messages):
    headers, body = {"Authorization": f"Bearer {llm.api_key}"}, {"model": llm.model, "messages": messages, "max_tokens": 6}
    answer = httpx.post(f"{llm.base_url}/chat/completions", headers=headers, json=body, trust_env=False, timeout=20)
    answer = answer.raise_for_status().json()
    acknowledge(llm.api_key, answer["system_fingerprint"])
    return answer["choices"][0]["message"]["content"] or ""

def solve(task, llm, ask=ask):
    messages, letters = [{"role": "user", "content": task["text"]}], 0
    for turn in range(2):
        text = ask(llm, messages)
        letters += sum(c.isalpha() for c in text)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
        time.sleep(0.1)
    body = {"reward": letters / 12, "name": "letters"}
    answer = httpx.post(f"{llm.base_url}/reward", headers={"x-api-key": llm.api_key}, json=body, trust_env=False, timeout=20)
    answer.raise_for_status()
    acknowledge(llm.api_key, answer.json()["id"])

def poisoned(task, llm):
    from agentlightning.capture.recorder import current
    if current().rollout.index == 0 and int(task["id"]) % 2 == 0:
        ask(llm, [{"role": "user", "content": task["text"]}])
        os.kill(os.getpid(), signal.SIGKILL)
    solve(task, llm)

def hangs():
    # Whether this process is one of the first, which hang.
    for number in range(int(os.environ["HANGS"])):
        try:
            os.close(os.open(f"hanging-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False

if __name__ == "__main__":  # the same agent as a program
    names = {"model": "AGL_MODEL", "base_url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY"}
    llm = SimpleNamespace(**{name: os.environ[variable] for name, variable in names.items()})
    task = json.load(sys.stdin)
    if hangs():
        ask_plainly(llm, [{"role": "user", "content": task["text"]}])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000; true"], start_new_session=True)
        with open("pids", "a") as file:
            file.write(f"{os.getpid()} {child.pid}\\n")
        time.sleep(1000)
    solve(task, llm, ask_plainly)
"""


def free_port() -> int:
    """A port for a server that is started again at the same address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s there is still no {what}"
        time.sleep(0.05)


class Process:
    """A process of `agl` with its output in a file."""

    def __init__(self, words: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "AGL_TOKEN": TOKEN, **environment},
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def account(self) -> str:
        """Its arguments, its exit code, and the end of its output."""
        return f"{self._process.args} ended as {self.code}: {self.output[-2000:]}"

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until the output has a text."""
        wait_until(lambda: text in self.output or self.code is not None, f"{text!r} in {self.output}", seconds)
        assert text in self.output, self.output

    def wait(self, seconds: float = 200) -> int:
        return self._process.wait(seconds)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)


class House:
    """A folder with the agent, and the processes that a test started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[Process]()
        self._answers = folder / "acknowledged"
        (folder / "fault_agent.py").write_text(AGENT)

    def start(self, words: list[str], **environment: str) -> Process:
        """Run Python with these arguments."""
        log = self.folder / f"{len(self.started)}.log"
        process = Process(words, self.folder, log, {"ACKNOWLEDGED": str(self._answers), **environment})
        self.started.append(process)
        return process

    def agl(self, *words: object, **environment: str) -> Process:
        return self.start(["-m", "agentlightning", *map(str, words)], **environment)

    def serve_store(self, store: object, port: int) -> Process:
        process = self.agl("store", "serve", store, "--port", port)
        process.wait_for("Ctrl-C")
        return process

    def serve_model(self, model: str, store: str, port: int) -> Process:
        process = self.agl("serve", model, "--store", store, "--port", port)
        process.wait_for("Ctrl-C")
        return process

    def runner(self, store: str, *words: object) -> Process:
        return self.agl("runner", "--store", store, "--agent", "fault_agent:solve", *words)

    def acknowledged(self) -> list[tuple[str, str]]:
        """The key of the attempt and the id of each record whose answer an agent got."""
        if not self._answers.exists():
            return []
        key_and_id = [line.split() for line in self._answers.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(key, record) for key, record in key_and_id]

    def close(self) -> None:
        for process in self.started:
            process.kill()
