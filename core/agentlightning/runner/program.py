"""An agent that is a program in any language: one process for each rollout, unchanged.

The process gets its task and the address of its model. A program that gives no reward has failed. Its end, its timeout, and a stopped or
killed run end the process with all its children.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

from agentlightning.capture.recorder import KEY_HEADER, checked_reward, current
from agentlightning.config.rewards import RewardFrom
from agentlightning.errors import AgentError, ConfigError, RewardError
from agentlightning.gateway.api.otlp import has_protobuf
from agentlightning.runner.managed_process import Command, Guard, ManagedProcess, describe_exit
from agentlightning.runner.process_output import Pipes, PipeTail
from agentlightning.runner.proxies import without_proxy
from agentlightning.types import JSON, LLM

TASK_LIMIT = 96 * 1024
"""Largest task in an environment variable, in bytes. Linux takes 128 KiB in one variable."""
EXPORT_DELAY = "500"
"""Milliseconds before the program sends its ended spans. A program that is killed loses those of that time."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
FOREIGN = frozenset({"ANTHROPIC_AUTH_TOKEN", "AGL_TOKEN", "AGL_STORE", "AGL_TASK", "AGL_PROMPTS", "AGL_REWARD_FILE", "AGL_REWARD_URL"})
"""Variables that the program must not inherit. Clients would send your own token in place of the attempt's key. The token of a store opens
the keys of all its rollouts. The others may come from an outer rollout."""


class CommandAgent:
    """Run a command line as an agent. A context manager: inside, no process outlives its rollout, nor this process if it is killed.
    (Without `/proc`, as on macOS, this covers the program's own process group.)

    `line` is split as in a shell, but runs without one; write `sh -c '...'` if you need a shell. The program runs in `folder` with this
    process's environment and these variables: `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`, `AGL_MODEL`,
    `AGL_TASK` (JSON; absent above 96 KiB), `AGL_TASK_FILE`, `AGL_PROMPTS` (the texts of its prompts by name, as JSON; absent without any),
    and `AGL_REWARD_FILE` or `AGL_REWARD_URL` if `reward` needs one. Its standard input is the task, too. `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `_HEADERS` and `_PROTOCOL` send its OpenTelemetry traces to the gateway, which records agents and tools from them.

    Raises `ConfigError` before the run begins if the program does not exist.
    """

    def __init__(self, line: str, *, reward: RewardFrom = "stdout", folder: str | Path = ".") -> None:
        self.line, self.folder = line, Path(folder).resolve()
        self.reward: RewardFrom = reward
        self._arguments = split_command(line)
        _check_program(self._arguments[0], self.folder)
        self._guard: Guard | None = None
        self._folders: Path | None = None

    def __enter__(self) -> CommandAgent:
        self._guard = Guard()
        self._folders = Path(mkdtemp(prefix="agl-command-"))
        self._guard.remove(self._folders)  # also if this process is killed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._guard is not None
        self._guard.close()
        self._guard = self._folders = None

    async def __call__(self, task: JSON, llm: LLM) -> float | None:
        """Run one rollout. Returns the reward, or None if the program posted it. `AgentError` tells how the program ended and its last
        output."""
        if self._guard is None:
            raise AgentError("The command has no guard to end its processes. Use it as `with CommandAgent(...) as agent:`.")
        with TemporaryDirectory(dir=self._folders) as name:
            folder = Path(name)
            text = json.dumps(task)
            (folder / "task.json").write_text(text + "\n")
            environment = self._environment(text, llm, folder)
            command = Command(arguments=self._arguments, environment=environment, folder=self.folder, stdin=folder / "task.json")
            output = Pipes()
            code = await self._run(command, output, self._guard)
            return await program_reward(self.reward, code, folder / "reward", output)

    async def _run(self, command: Command, output: Pipes, watcher: Guard) -> int:
        """The exit code, when the process and its children have ended. A cancellation gets a note with the last output."""
        try:
            process = ManagedProcess(command, output, watcher)
        except OSError as error:
            reason = error.strerror or error
            raise AgentError(f"The command {self.line!r} cannot be started: {reason}. Check the program and its permissions.") from error
        try:
            try:
                return await process.wait()
            finally:
                await process.stop(grace=GRACE)
        except asyncio.CancelledError as cancelled:
            cancelled.add_note(output.tail())
            raise

    def _environment(self, task: str, llm: LLM, folder: Path) -> dict[str, str]:
        own = {
            **program_variables(task, llm, self.reward, str(folder)),
            "PWD": str(self.folder),  # programs that trust it would work in the folder of this process
            **without_proxy(urlsplit(llm.base_url).hostname),
        }
        return {name: value for name, value in os.environ.items() if name not in FOREIGN} | own


def program_variables(task: str, llm: LLM, reward: RewardFrom, folder: str) -> dict[str, str]:
    """The environment variables of a program for one rollout. `folder`: where it sees `task.json` and `reward`."""
    root = llm.base_url.removesuffix("/v1")
    variables = {
        "OPENAI_BASE_URL": llm.base_url,
        "OPENAI_API_BASE": llm.base_url,  # older clients read it, and LangChain prefers it
        "OPENAI_API_KEY": llm.api_key,
        "OPENAI_DEFAULT_MODEL": llm.model,  # the OpenAI Agents SDK's default
        "OPENAI_AGENTS_DISABLE_TRACING": "1",  # its traces would take this key to OpenAI
        "ANTHROPIC_BASE_URL": root,
        "ANTHROPIC_API_KEY": llm.api_key,
        "AGL_MODEL": llm.model,
        **({"AGL_POLICIES": ",".join(llm.policies)} if llm.policies else {}),
        "AGL_TASK_FILE": f"{folder}/task.json",
    }
    if len(task) <= TASK_LIMIT:
        variables["AGL_TASK"] = task
    if llm.prompts:
        variables["AGL_PROMPTS"] = json.dumps({name: llm.prompt(name) for name in llm.prompts})  # recorded: the program has them all
    if reward == "file":
        variables["AGL_REWARD_FILE"] = f"{folder}/reward"
    if reward == "post":
        variables["AGL_REWARD_URL"] = f"{llm.base_url}/reward"
    return variables | _telemetry(root, llm.api_key)


async def program_reward(source: RewardFrom, code: int, file: Path, output: Pipes) -> float | None:
    """The reward of a program that ended with this exit code, or None if it posted one or gives none. `file`: its reward file.

    Raises `AgentError` for a failed program, and `RewardError` for one without a reward, with its last output.
    """
    if source == "exit_code" and 0 <= code <= 125:
        return float(code == 0)
    if code != 0:
        raise AgentError(f"The command {describe_exit(code)}; {output.tail()}")
    if source == "none":
        return None
    try:
        if source == "post":
            return await _posted()
        if source == "file":
            return read_reward(_end_of(file), "the file AGL_REWARD_FILE")
        return read_reward(output.stdout.text, "its standard output")
    except RewardError as error:
        raise RewardError(f"{error}; {output.tail()}") from error


async def _posted() -> None:
    recorder = current()
    if recorder is not None and not (await recorder.store.records(recorder.attempt.id)).rewards:
        raise RewardError("The command ended without a reward. With reward = 'post' it must post one to AGL_REWARD_URL")


def _telemetry(root: str, key: str) -> dict[str, str]:
    """The variables of OpenTelemetry's exporters. Those of traces alone come first in every SDK, so they must agree."""
    protocol = "http/protobuf" if has_protobuf() else "http/json"
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": root,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{root}/v1/traces",
        **{f"OTEL_EXPORTER_OTLP_{signal}HEADERS": f"{KEY_HEADER.lower()}={key}" for signal in ("", "TRACES_")},
        **{f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL": protocol for signal in ("", "TRACES_")},
        "OTEL_BSP_SCHEDULE_DELAY": EXPORT_DELAY,
    }


def read_reward(text: str, where: str) -> float:
    """The reward in the last line that is not empty: a number, or a JSON object with a `reward`. `RewardError` shows that line."""
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
            f"The last line of {where} is {line!r:.120}, which is no reward. Print a number or a JSON object with a number `reward` there, "
            "or set reward = 'exit_code', 'file' or 'post'"
        )
    return checked_reward(value)


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as reward_file:
            reward_file.seek(max(0, file.stat().st_size - PipeTail.LIMIT))
            return reward_file.read().decode(errors="replace")
    except OSError as error:
        raise RewardError(
            f"The file AGL_REWARD_FILE cannot be read: {error.strerror or error}. Write the reward there before the command ends"
        ) from error


def split_command(line: str) -> list[str]:
    """The words of a command line. Raises `ConfigError` if a shell would not take it."""
    try:
        arguments = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"command = {line!r} cannot be split into words: {error}. Quote it as in a shell.") from error
    if not arguments:
        raise ConfigError('command is empty. Give a command line, as in command = "python my_agent.py".')
    return arguments


def _check_program(program: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"command: the folder {str(folder)!r} does not exist. Run the command in an existing folder.")
    if shutil.which(str(folder / program) if "/" in program else program) is not None:
        return
    if "/" in program:
        raise ConfigError(f"command: the program {program!r} is not an executable file. Check its path and its permissions.")
    if "=" in program or program in ("cd", "export"):
        advice = "A command runs without a shell; write sh -c '...' if you need one."
    elif program.startswith("python"):
        advice = f"This Python is {sys.executable}."
    else:
        advice = "Install it, or write its path."
    raise ConfigError(f"command: the program {program!r} is not found on PATH. {advice}")
