"""One container: started, watched and ended here. It also ends when this process is killed, because its first process sees that."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.errors import AgentError
from agentlightning.runner.process_output import Pipes
from agentlightning.types import new_id
from agentlightning_docker import inside
from agentlightning_docker.engines import engine_environment, run_command
from agentlightning_docker.relay import Relay
from agentlightning_docker.settings import DockerSettings

LATE = 30.0
"""Seconds beyond the attempt's timeout, after which a container ends itself."""
KILL_AGAIN = 0.5
"""Seconds between two kills of a container, which may still be starting."""
GONE = 20.0
"""Seconds for the engine to remove a killed container."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The program of a container."""

    arguments: Sequence[str]
    environment: dict[str, str]
    """In addition to the image's."""
    task: str
    gateway: tuple[str, int]


async def run_container(engine: str, settings: DockerSettings, work: Work, folder: Path, output: Pipes) -> int:
    """Run a program in a new container. Returns its exit code, when the container is gone. `folder` is empty, and the rollout's own.

    A cancellation kills the container. Raises `AgentError` if it did not start, or did not tell how the program ended.
    """
    _fill(folder, work, settings.timeout + LATE)
    name = f"agl-{new_id()}"
    async with Relay(folder, work.gateway) as relay:
        process = await _spawn(run_command(engine, name, folder, settings), output, folder)
        try:
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait([relay.report, ended], return_when=asyncio.FIRST_COMPLETED)
            report = relay.report.result() if relay.report.done() else None
        finally:
            await _end(engine, name, process)
            await output.finish()
        return _code(report, relay.started, settings, output, process.returncode)


def _fill(folder: Path, work: Work, limit: float) -> None:
    """Write what the container reads."""
    order = {"arguments": list(work.arguments), "environment": work.environment, "limit": limit}
    (folder / "order.json").write_text(json.dumps(order))
    (folder / "task.json").write_text(work.task + "\n")
    shutil.copyfile(inside.__file__, folder / "inside.py")
    for name in ("reward", "records"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    folder.chmod(0o755)


async def _spawn(command: Sequence[str], output: Pipes | None, folder: Path | None = None) -> Process:
    """Start a command of the engine in a folder, out of reach of the terminal's Ctrl-C. (Podman may leave a file `oom` there.)"""
    stdout, stderr = output.open() if output is not None else (DEVNULL, DEVNULL)
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=stdout, stderr=stderr, env=engine_environment(), cwd=folder, start_new_session=True
        )
    finally:
        if output is not None:
            for number in (stdout, stderr):
                os.close(number)


async def _end(engine: str, name: str, process: Process) -> None:
    """Kill the container until its command has ended, also where somebody is in a hurry."""
    end = asyncio.ensure_future(_kill(engine, name, process))
    try:
        await asyncio.shield(end)
    except asyncio.CancelledError:
        await end
        raise


async def _kill(engine: str, name: str, process: Process) -> None:
    deadline = asyncio.get_running_loop().time() + GONE
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILL_AGAIN)  # an agent that ended by itself: its container is on its way out
    while process.returncode is None and asyncio.get_running_loop().time() < deadline:
        await (await _spawn([engine, "kill", name], None)).wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), KILL_AGAIN)
    if process.returncode is None:
        process.kill()
        await process.wait()
    await (await _spawn([engine, "rm", "--force", name], None)).wait()  # nearly always gone already


def _code(report: dict[str, Any] | None, started: bool, settings: DockerSettings, output: Pipes, engine_code: int | None) -> int:
    """The program's exit code. Raises `AgentError` if nobody told it."""
    if report is None and not started:
        raise AgentError(f"The container did not start (exit code {engine_code}); {output.tail()}")
    if report is None:
        raise AgentError(
            f"The container ended before its program, by its memory limit of {settings.memory} or from outside; {output.tail()}"
        )
    if "error" in report:
        raise AgentError(f"The container has no program: {report['error']}.")
    code = int(report["code"])
    if report["memory"] and code != 0:
        raise AgentError(
            f"The container reached its memory limit of {settings.memory}, and the kernel ended a process. Raise runner.memory, or look "
            f"what the agent ran; {output.tail()}"
        )
    return code
