"""An agent that is a program: one process for each rollout, in any language, unchanged.

The process is told its task and where its model is; its reward is read in the one way that was chosen, and a program that does not give
one has failed. Whatever ends a rollout ends its process with all children in its session: its own end, the timeout, a run that is stopped
or killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

from agentlightning.capture.recorder import checked_reward, current
from agentlightning.config.schema import RewardFrom
from agentlightning.errors import AgentError, ConfigError, RewardError
from agentlightning.runner import guard
from agentlightning.runner.proxies import without_proxy
from agentlightning.types import JSON, LLM

TASK_LIMIT = 96 * 1024
"""Bytes of a task that an environment variable is given: Linux takes 128 KiB in one."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a process that is ended."""
DRAIN = 1.0
"""Seconds to wait for the last output of a process that has ended; a process that left its session may hold the pipe open."""


class CommandAgent:
    """Runs a command line as an agent. A context manager: inside, no process outlives its rollout, nor this one, even if this one is
    killed (without `/proc`, as on macOS: none of the program's own process group).

    `line` is split as a shell would and run without one; write `sh -c '...'` where a shell is wanted. It runs in `folder` with this
    process's environment and `OPENAI_BASE_URL`, `OPENAI_API_KEY` (`ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`), `AGL_MODEL`, `AGL_TASK`
    (JSON; not set for a task beyond 96 KiB), `AGL_TASK_FILE`, and what its reward needs; the task is its standard input as well.

    Raises `ConfigError` when there is no such program, so that it is said before a run begins.
    """

    def __init__(self, line: str, *, reward: RewardFrom = "stdout", folder: str | Path = ".") -> None:
        self.line, self.reward, self.folder = line, reward, Path(folder).resolve()
        self._arguments = _split(line)
        _check_program(self._arguments[0], self.folder)
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CommandAgent:
        self._guard = subprocess.Popen(  # noqa: S603 (our own file)
            [sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._guard is not None
        self._guard.communicate()
        self._guard = None

    async def __call__(self, task: JSON, llm: LLM) -> float | None:
        """One rollout: the reward, or None where it was posted. `AgentError` says how the process ended and what it wrote last."""
        if self._guard is None:
            raise AgentError("a command is run inside `with CommandAgent(...) as agent:`, which ends its processes")
        with TemporaryDirectory(prefix="agl-command-") as name:
            folder = Path(name)
            text = json.dumps(task)
            (folder / "task.json").write_text(text + "\n")
            process = _Process(self._arguments, self.folder, self._environment(text, llm, folder), folder / "task.json")
            code = await process.run(self._tell)
            if self.reward == "exit_code" and 0 <= code <= 125:
                return float(code == 0)
            if code != 0:
                raise AgentError(f"the command {_how(code)}; {process.said()}")
            try:
                return await self._read_reward(folder / "reward", process)
            except RewardError as error:
                raise RewardError(f"{error}; {process.said()}") from error

    async def _read_reward(self, file: Path, process: _Process) -> float | None:
        if self.reward == "post":
            recorder = current()
            if recorder is not None and not (await recorder.store.records(recorder.attempt.id)).rewards:
                raise RewardError("the command ended and had posted no reward to AGL_REWARD_URL")
            return None
        if self.reward == "file":
            return read_reward(_end_of(file), "the file AGL_REWARD_FILE")
        return read_reward(process.out.text, "its standard output")

    def _environment(self, task: str, llm: LLM, folder: Path) -> dict[str, str]:
        root = llm.base_url.removesuffix("/v1")
        told = {
            "OPENAI_BASE_URL": llm.base_url,
            "OPENAI_API_BASE": llm.base_url,  # what older clients read, and LangChain prefers
            "OPENAI_API_KEY": llm.api_key,
            "OPENAI_DEFAULT_MODEL": llm.model,  # of the OpenAI Agents SDK, for agents that name none
            "OPENAI_AGENTS_DISABLE_TRACING": "1",  # else it sends traces, and this key with them, to OpenAI
            "ANTHROPIC_BASE_URL": root,
            "ANTHROPIC_API_KEY": llm.api_key,
            "AGL_MODEL": llm.model,
            "AGL_TASK_FILE": str(folder / "task.json"),
        }
        if len(task) <= TASK_LIMIT:
            told["AGL_TASK"] = task
        if self.reward == "file":
            told["AGL_REWARD_FILE"] = str(folder / "reward")
        if self.reward == "post":
            told["AGL_REWARD_URL"] = f"{llm.base_url}/reward"
        told |= without_proxy(urlsplit(llm.base_url).hostname)
        # a token of the user's own would be sent instead of the attempt's key; a name of an outer rollout would be taken for ours
        strange = {"ANTHROPIC_AUTH_TOKEN", "AGL_TASK", "AGL_REWARD_FILE", "AGL_REWARD_URL"}
        return {key: value for key, value in os.environ.items() if key not in strange} | told

    def _tell(self, what: str) -> None:
        """See `agentlightning.runner.guard`."""
        assert self._guard is not None
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the guard; what this process ends itself is ended all the same
            self._guard.stdin.write(f"{what}\n".encode())


class _Process:
    """A process in a session of its own, its input a file, with the end of its output."""

    def __init__(self, arguments: list[str], folder: Path, environment: Mapping[str, str], task: Path) -> None:
        self._mark = uuid4().hex
        self._arguments, self._folder, self._environment, self._task = arguments, folder, {**environment, guard.MARK: self._mark}, task
        self.out, self.err = _Output(), _Output()

    async def run(self, tell: Callable[[str], None]) -> int:
        """Its exit code, when it has ended and its children with it. Cancelled, it is asked to end, then made to; the cancellation takes
        a note with what it wrote."""
        process: asyncio.subprocess.Process | None = None
        try:
            tell(f"+{self._mark}")  # before it starts: this process may be killed while it does
            try:
                process = await self._start()
                tell(f"={self._mark} {process.pid}")
                return await process.wait()
            except asyncio.CancelledError:
                if process is not None:
                    guard.signal_program(self._mark, process.pid, signal.SIGTERM)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), GRACE)
                raise
            finally:
                guard.kill_program(self._mark, None if process is None else process.pid)
                tell(f"-{self._mark}")
                if process is not None:
                    await asyncio.gather(self.out.end(), self.err.end(), process.wait())
        except asyncio.CancelledError as stopped:
            stopped.add_note(self.said())
            raise
        finally:
            self.out.close()
            self.err.close()

    async def _start(self) -> asyncio.subprocess.Process:
        ends: list[int] = []
        try:
            ends += [await self.out.open(), await self.err.open()]
            with open(self._task, "rb") as task:  # noqa: ASYNC230 (a small file that was just written)
                return await asyncio.create_subprocess_exec(
                    *self._arguments,
                    stdin=task,
                    stdout=ends[0],
                    stderr=ends[1],
                    cwd=self._folder,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise AgentError(f"the command {shlex.join(self._arguments)!r} cannot be started: {error.strerror or error}") from error
        finally:
            for end in ends:
                os.close(end)

    def said(self) -> str:
        """The last lines of both outputs, for an error message."""
        parts = [f"{name} ends:\n{output.tail}" for name, output in (("stderr", self.err), ("stdout", self.out)) if output.tail]
        return "\n".join(parts) or "it wrote nothing"


class _Output(asyncio.Protocol):
    """The last `LIMIT` bytes that came through a pipe."""

    LIMIT = 64 * 1024
    SHOWN = 1500
    """Characters that an error message shows at most."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._transport: asyncio.BaseTransport | None = None
        self._ended = asyncio.Event()

    async def open(self) -> int:
        """Make the pipe; the writing end, which the caller closes."""
        reading, writing = os.pipe()
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, os.fdopen(reading, "rb", 0))
        return writing

    async def end(self) -> None:
        """Wait for the rest of what was written."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), DRAIN)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        del self._data[: -self.LIMIT]

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    @property
    def tail(self) -> str:
        text = self.text.strip()
        return text if len(text) <= self.SHOWN else "…" + text[-self.SHOWN :]


def read_reward(text: str, where: str) -> float:
    """The reward in the last line that is not empty: a number, or a JSON object with a `reward`. `RewardError` says what stands there."""
    lines = text.replace("\r", "\n").split("\n")  # `splitlines` also cuts inside the strings of JSON
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        value = line
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("reward")
    if isinstance(value, str):
        with suppress(ValueError):  # `.5` is a number to awk and bc, though not to JSON
            value = float(value) if "_" not in value else value
    if value is None or isinstance(value, str | bool):
        raise RewardError(
            f"the last line of {where} is {line!r:.120}; expected the reward, as a number or as a JSON object with a number `reward`. "
            "Where it comes another way, say reward = 'exit_code', 'file' or 'post'"
        )
    return checked_reward(value)


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _Output.LIMIT))
            return opened.read().decode(errors="replace")
    except OSError as error:
        raise RewardError(f"the command ended, and the file AGL_REWARD_FILE cannot be read: {error.strerror or error}") from error


def _split(line: str) -> list[str]:
    try:
        arguments = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"command is {line!r}, which cannot be split into words: {error}; quote it as in a shell") from error
    if not arguments:
        raise ConfigError('command is empty; expected a command line, as in command = "python my_agent.py"')
    return arguments


def _check_program(program: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"command: there is no folder {folder} to run it in")
    found = shutil.which(str(folder / program) if "/" in program else program)
    if found is None:
        there = "is not an executable file" if "/" in program else "is not found on PATH"
        wanted = f"; this Python is {sys.executable}" if program.startswith("python") else ""
        shell = "; a command runs without a shell, so write sh -c '...' for one" if "=" in program or program in ("cd", "export") else ""
        raise ConfigError(f"command: the program {program!r} {there}{wanted}{shell}")


def _how(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
