"""An agent that runs each rollout in a container of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import TracebackType
from urllib.parse import urlsplit

from agentlightning.capture.recorder import Recorder, current
from agentlightning.config.rewards import RewardFrom
from agentlightning.errors import AgentError, ConfigError
from agentlightning.runner.managed_process import Guard
from agentlightning.runner.process_output import Pipes
from agentlightning.runner.program import program_reward, program_variables
from agentlightning.types import JSON, LLM
from agentlightning_docker.container import Work, run_container
from agentlightning_docker.function import Function, read_records
from agentlightning_docker.inside import FOLDER, HOST, PORT
from agentlightning_docker.settings import DockerSettings


class ContainerAgent:
    """Run a command line, or a `Function`, in a container for each rollout. A context manager: it owns the rollouts' folders.

    The container reaches the gateway at a loopback address of its own, and nothing else. It sees the task, the key of its attempt, and what
    the image and `runner.options` bring; no variable of this process.
    """

    def __init__(self, engine: str, settings: DockerSettings, program: Sequence[str] | Function, reward: RewardFrom) -> None:
        self._engine, self._settings, self._program = engine, settings, program
        self._reward: RewardFrom = reward
        self._guard: Guard | None = None
        self._folders: Path | None = None

    def __enter__(self) -> ContainerAgent:
        self._guard, self._folders = Guard(), Path(mkdtemp(prefix="agl-docker-"))
        self._guard.remove(self._folders)  # also if this process is killed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._guard is not None
        self._guard.close()
        self._guard = self._folders = None

    async def __call__(self, task: JSON, llm: LLM) -> float | None:
        """Run one rollout. Returns the reward, or None if the program posted or recorded it."""
        with TemporaryDirectory(dir=self._folders) as name:
            folder, output = Path(name), Pipes()
            work = self._work(task, llm, folder)
            recorder = current()
            try:
                code = await run_container(self._engine, self._settings, work, folder, output)
            except BaseException as error:
                error.add_note(output.tail())
                raise
            finally:
                if recorder is not None:
                    await _record(recorder, folder / "records")
            if isinstance(self._program, Function) and code == 0:
                return None  # its reward is among the records
            return await program_reward(self._reward, code, folder / "reward", output)

    def _work(self, task: JSON, llm: LLM, folder: Path) -> Work:
        inner, text = replace(llm, base_url=f"http://{HOST}:{PORT}/v1"), json.dumps(task)
        arguments = self._program
        if isinstance(arguments, Function):
            inner = replace(inner, prompts={})  # the function has those of its rollout, and records the ones that it asks for
            arguments = arguments.arguments(folder)
        environment = program_variables(text, inner, self._reward, FOLDER)
        return Work(arguments=arguments, environment=environment, task=text, gateway=gateway_of(llm.base_url))


def gateway_of(base_url: str) -> tuple[str, int]:
    """Host and port of the gateway. Raises `ConfigError` for one behind TLS."""
    address = urlsplit(base_url)
    if address.scheme != "http" or address.hostname is None:
        raise ConfigError(f"The gateway is at {base_url}, but containers reach it by http only. Remove `address` from the config.")
    return address.hostname, address.port or 80


async def _record(recorder: Recorder, file: Path) -> None:
    """Record the spans and rewards that a function left in its file. Raises `AgentError` for those of another attempt."""
    for record in read_records(file):
        if record.attempt_id != recorder.attempt.id:
            raise AgentError(f"The container wrote a record of another attempt, {record.attempt_id}. Check what the agent runs.")
        recorder.add(record)
        await recorder.flush()
