"""An agent function in a container: the side that starts it, and the program inside, `python3 -m agentlightning_docker.function`.

Spans and rewards of the function go to the file `records`, one after the other, so that those of a killed container are kept.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from agentlightning.capture.recorder import Recorder, checked_reward, current, use
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import AgentError, ConfigError, WireError
from agentlightning.registry.registry import load_object, registry
from agentlightning.runner.agent_call import AgentCall, explain, takes_llm
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import LLM, Attempt, Record, Reward, Rollout, Span
from agentlightning_docker.inside import FOLDER

LENGTH = struct.Struct("<I")
MOST_BYTES = 32 * 2**20
"""Bytes of records of one container, at most. The rest is an error."""
FOREVER = 10.0**9
"""Seconds. The runner outside has the time limit."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """An agent function in an image with `agentlightning`."""

    agent: str
    """`module:function`"""
    adapters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Names of the model in the agent's code."""

    def arguments(self, folder: Path) -> list[str]:
        """The command line inside. Writes into the rollout's folder which attempt it is."""
        recorder = current()
        if recorder is None:
            raise AgentError("A function runs in a container only inside a rollout.")
        call = _Call(function=self, rollout=encode(recorder.rollout), attempt=encode(recorder.attempt))
        (folder / "function.json").write_bytes(msgspec.json.encode(call))
        return ["python3", "-m", "agentlightning_docker.function"]


@dataclass(frozen=True, kw_only=True)
class _Call:
    function: Function
    rollout: bytes
    attempt: bytes


def read_records(file: Path) -> Iterator[Span | Reward]:
    """The complete records of a file. Raises `AgentError` for anything else in it."""
    with file.open("rb") as stream:
        data = memoryview(stream.read(MOST_BYTES + 1))
    if len(data) > MOST_BYTES:
        raise AgentError(f"The container wrote more than {MOST_BYTES:,} bytes of records. Record less in one rollout.")
    while len(data) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(data)
        if len(data) < LENGTH.size + length:
            return  # killed while it wrote
        try:
            yield cast("Span | Reward", decode(bytes(data[LENGTH.size : LENGTH.size + length]), Span | Reward))
        except WireError as error:
            raise AgentError(
                f"The container wrote a record that cannot be read: {error}. Install the same agentlightning in the image."
            ) from error
        data = data[LENGTH.size + length :]


class _Records:
    """Takes the function's records in the store's place."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab", buffering=0)

    async def record(self, records: Sequence[Record]) -> None:
        """Append records."""
        for record in records:
            body = encode(record)
            self._file.write(LENGTH.pack(len(body)) + body)


async def _run(call: _Call) -> int:
    """Call the function. Returns the exit code."""
    policies = tuple(name for name in os.environ.get("AGL_POLICIES", "").split(",") if name)
    llm = LLM(os.environ["AGL_MODEL"], os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"], policies)
    rollout, attempt = decode(call.rollout, Rollout), decode(call.attempt, Attempt)
    for adapter in call.function.adapters:
        registry().load("adapters", adapter)(call.function.models)
    agent: Any = load_object(call.function.agent)
    if not callable(agent):
        raise ConfigError(f"The agent {call.function.agent!r} is not a function. Define it as `async def solve(task, llm) -> float`.")
    recorder = Recorder(cast(LightningStore, _Records(Path(FOLDER, "records"))), rollout, attempt, llm)
    with use(recorder):
        started = AgentCall(agent, (rollout.task.input, recorder.llm) if takes_llm(agent) else (rollout.task.input,))
    outcome = await started.wait(FOREVER, 0)
    if outcome.error is None and outcome.value is not None:
        recorder.add(Reward(attempt_id=attempt.id, value=checked_reward(outcome.value), name="return"))
    await recorder.close()
    if outcome.error is not None:
        print(explain(outcome.error), file=sys.stderr)
    return 0 if outcome.error is None else 1


def main() -> None:
    """Entry of the container's program."""
    sys.path.insert(0, os.getcwd())
    call = msgspec.json.decode(Path(FOLDER, "function.json").read_bytes(), type=_Call)
    code = asyncio.run(_run(call))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that the agent left must not keep the container


if __name__ == "__main__":
    main()
