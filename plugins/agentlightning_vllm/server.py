"""One vLLM server as a process: started, watched, ended with all its children, also when this process is killed."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlightning import guard
from agentlightning.errors import EngineError
from agentlightning.model import Policy, new_id
from agentlightning_vllm.environment import Environment
from agentlightning_vllm.settings import Settings

GRACE = 5.0
"""Seconds that a server has to end when it is asked to."""
SHOWN = 2500
"""Characters of the log that an error message shows."""
NAME = "main"
"""What the server calls the model."""
ADAPTER = "adapter"
"""What it calls the LoRA adapter."""


@dataclass(frozen=True, slots=True)
class Order:
    """What every server of an engine is started with."""

    settings: Settings
    environment: Environment
    model: str
    """Folder or hub id of the model as it was found: the tokenizer, and the base of an adapter."""
    context: int
    dtype: str

    def arguments(self, policy: Policy, weights: str, rank: int | None, port: int) -> list[str]:
        """The command line of a server of some weights; `rank` is of the adapter."""
        settings, cpu = self.settings, self.environment.cpu
        line = [
            self.environment.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", self.model if policy.kind == "lora" else weights,
            "--tokenizer", self.model,
            "--served-model-name", NAME,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--dtype", self.dtype,
            "--max-model-len", str(self.context),
            "--logprobs-mode", "processed_logprobs",
            "--generation-config", "vllm",  # no sampling that the model's files ask for behind our back
            "--stream-interval", "8",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if cpu:
            line += ["--enforce-eager"]
        elif settings.memory_gb is not None:
            line += ["--kv-cache-memory-bytes", str(int(settings.memory_gb * 2**30))]
        elif not any(each.startswith("--gpu-memory-utilization") for each in settings.args):
            line += ["--gpu-memory-utilization", "0.4"]
        if rank is not None:
            line += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(lora_rank(rank))]
        if settings.sleep:
            line += ["--enable-sleep-mode"]
        return [*line, *settings.args]

    def variables(self, key: str, number: int) -> dict[str, str]:
        """Environment variables of a server."""
        settings = self.settings
        return {
            **os.environ,
            "VLLM_API_KEY": key,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **({"HF_HUB_OFFLINE": "1"} if Path(self.model).is_dir() else {}),
            **({"CUDA_VISIBLE_DEVICES": settings.devices[number]} if settings.devices else {}),
            **(
                {"VLLM_CPU_KVCACHE_SPACE": str(math.ceil(settings.memory_gb or 2)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
                if self.environment.cpu
                else {}
            ),
        }


def lora_rank(rank: int) -> int:
    """The least rank that vLLM can be started for and that holds this one."""
    known = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    if rank > known[-1]:
        raise EngineError(f"vLLM serves LoRA adapters of rank {known[-1]} at most, and this one has {rank}")
    return next(each for each in known if each >= rank)


class Server:
    """A process under a guard, which ends it should this process be killed."""

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path) -> None:
        self.log = log
        self._mark = new_id()
        self._guard = subprocess.Popen(  # noqa: S603 (our own file)
            [sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._tell(f"+{self._mark}")
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(  # noqa: S603 (what the settings say)
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**variables, guard.MARK: self._mark},
                    start_new_session=True,
                )
        except OSError as error:
            self._guard.communicate()
            raise EngineError(f"vLLM cannot be started as {arguments[0]!r}: {error}") from error
        self._tell(f"={self._mark} {self._process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self.code
        if code is None:
            return "runs"
        return f"exited with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def tail(self) -> str:
        """The end of its log."""
        with suppress(OSError):
            return self.log.read_bytes()[-SHOWN:].decode(errors="replace").strip()
        return ""

    async def stop(self) -> None:
        """End it with all its children."""
        if self._process.poll() is None:
            guard.signal_program(self._mark, self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, GRACE)
        await asyncio.to_thread(guard.kill_program, self._mark, self._process.pid)
        await asyncio.to_thread(self._process.wait)
        self._tell(f"-{self._mark}")
        await asyncio.to_thread(self._guard.communicate)

    def _tell(self, what: str) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the guard
            self._guard.stdin.write(f"{what}\n".encode())


def free_port() -> int:
    """A port of the loopback that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_key() -> str:
    return secrets.token_urlsafe(24)
