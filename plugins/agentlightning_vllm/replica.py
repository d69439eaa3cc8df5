"""One vLLM server and its weights. If the server dies, it restarts with the same weights."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlightning.errors import EngineError
from agentlightning.runner.managed_process import Command, ManagedProcess
from agentlightning.runner.process_output import LogFile
from agentlightning.training.weight_sync import EXACT, ROUNDED, WeightCheck, compare_weights, folder_of
from agentlightning.types import Policy
from agentlightning_vllm.server import ADAPTER, HALVES, NAME, Order, free_port, new_key
from agentlightning_vllm.tied_head import Weights
from agentlightning_vllm.wire import Interrupted, Wire

log = logging.getLogger("agentlightning.vllm")

TRIES = 3
"""Attempts per load, each with a fresh server."""
RETURN = 120.0
"""Seconds for a server of `engine.urls` to return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """State shared by the replicas of one engine."""

    order: Order | None
    """How to start a server. None if the servers are already running."""
    key: str | None
    """Key of running servers."""
    base: Policy
    """Policy that a fresh server loads."""
    silence: float
    """Seconds without an answer before a request is interrupted."""
    weight_check_limit: float | None
    """Maximum difference of the weight check, in nats per token. None for one that fits the number types."""
    packs_head: bool
    """Whether a server may compute logits from a packed copy of the output head."""
    logs: Path
    """Folder of the logs."""


class Replica:
    """A server, started by `fleet.order` or running at `url`. Use it only in the engine's own loop."""

    def __init__(self, number: int, fleet: Fleet, url: str | None = None) -> None:
        self.number = number
        self.active = 0
        """Number of in-flight requests."""
        self.rollouts = 0
        """Number of rollouts assigned to it so far."""
        self.life = 0
        """Number of times it has started."""
        self.served: Policy | None = None
        """The policy it provably serves."""
        self.model = NAME
        """The server's name for it."""
        self._fleet, self._url = fleet, url
        self._server: ManagedProcess | None = None
        self._wire: Wire | None = None
        self._asleep = False
        self._recovery: asyncio.Task[None] | None = None
        self._last_check: WeightCheck | None = None

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise Interrupted("it is not running")
        return self._wire

    @property
    def pid(self) -> int | None:
        """The server's process. None if it is not ours, or not running."""
        return self._server.pid if self._server is not None else None

    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve a policy, and verify it. No request may be in flight."""
        for _ in range(TRIES):
            try:
                if self._wire is None:
                    await self._bring_up(policy)
                elif policy == self.served:
                    return await self._refresh(policy)
                else:
                    await self._change(policy)
                return await self._prove(policy)
            except Interrupted as reason:
                self._warn_of_restart(policy, reason)
                await self.close()
        raise EngineError(
            f"vLLM server {self.number} went away {TRIES} times while loading {policy.uri}. See its log in {self._fleet.logs}."
        )

    async def recover(self, life: int, policy: Policy, reason: Interrupted) -> None:
        """Restart the server with a policy, unless it is healthy or has already restarted since `life`.

        All requests that wait share one attempt, and its error.
        """
        if self.life != life:
            return
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(policy, reason))
            self._recovery.add_done_callback(self._forget_recovery)
        try:
            await asyncio.shield(self._recovery)
        except EngineError as error:
            raise EngineError(str(error)) from None  # one of its own: an error that several tasks raise collects their tracebacks

    async def sleep(self) -> None:
        """Free the GPU until the next load or `wake`."""
        if self._wire is not None and not self._asleep:
            with suppress(Interrupted):  # a dead server holds no memory, and it restarts when needed
                await self._wire.sleep()
            self._asleep = True

    async def wake(self) -> None:
        if self._asleep and self._wire is not None:
            with suppress(Interrupted):
                await self._wire.wake()
            self._asleep = False

    async def close(self) -> None:
        """Stop the server if it is ours."""
        if self._wire is not None:
            await self._wire.close()
            self._wire = None
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def _recover(self, policy: Policy, reason: Interrupted) -> None:
        await asyncio.sleep(0.1)  # a connection ends a moment before its process
        ended = self._server is not None and self._server.code is not None
        if not ended and self._wire is not None and await self._wire.healthy():
            return
        self._warn_of_restart(policy, reason)
        await self.close()
        await self.load(policy)

    def _forget_recovery(self, recovery: asyncio.Task[None]) -> None:
        self._recovery = None
        if not recovery.cancelled():
            recovery.exception()  # the requests that wait raise it

    async def _refresh(self, policy: Policy) -> dict[str, float]:
        await self.wake()
        if (stamp := await self.wire.stamped()) != str(policy.version):
            raise Interrupted(f"it was restarted from outside, with version {stamp!r}")
        await self.wire.forget()
        return {}

    async def _change(self, policy: Policy) -> None:
        await self.wake()
        if self.served is not None and policy.kind != self.served.kind:
            raise EngineError(f"vLLM serves a {self.served.kind} policy and cannot load a {policy.kind} one. Start a new run.")
        self.served = None  # until verified
        if await self._must_restart(policy):
            log.info("vLLM server %d restarts with version %d, because it cannot load the tied output head.", self.number, policy.version)
            await self.close()
            return await self._bring_up(policy)
        await self.wire.pause()
        try:
            await self._take(policy)
            await self.wire.forget()
            await self.wire.stamp(policy.version)
        finally:
            await self.wire.resume()

    async def _must_restart(self, policy: Policy) -> bool:
        """Return whether only a fresh server has the output head of a policy."""
        if policy.kind == "lora" or not self._fleet.packs_head or self._fleet.order is None:
            return False
        weights = await asyncio.to_thread(Weights.read, folder_of(policy))
        return weights.tied and weights.embedding is None

    async def _take(self, policy: Policy) -> None:
        folder = folder_of(policy)
        if policy.kind == "lora":
            await self.wire.adapt(ADAPTER, str(folder))
            self.model = ADAPTER
            return
        weights = await asyncio.to_thread(Weights.read, folder)
        if not (self._fleet.packs_head and weights.tied and weights.embedding):
            return await self.wire.reload(str(folder))
        named = await asyncio.to_thread(weights.with_head, weights.embedding)
        try:
            await self.wire.reload(str(named))
        finally:
            await asyncio.to_thread(shutil.rmtree, named, ignore_errors=True)

    async def _prove(self, policy: Policy) -> dict[str, float]:
        """Compare the served weights with the trainer's weight check, if their folder has one."""
        check = WeightCheck.of(policy)
        if check is None:
            self.served = policy
            return {}
        logprobs = await self.wire.score(self.model, check.ids)
        difference, wrong = compare_weights(check, logprobs, limit=self._limit(check), before=self._last_check)
        if wrong is not None:
            raise EngineError(f"vLLM server {self.number} loaded version {policy.version} from {policy.uri}, and {wrong}")
        self.served, self._last_check = policy, check
        return {"weight_check_diff": difference}

    def _limit(self, check: WeightCheck) -> float:
        """Return the maximum difference of a weight check."""
        order = self._fleet.order
        exact = order is not None and order.dtype(check) == "float32" and check.dtype not in HALVES
        return self._fleet.weight_check_limit or (EXACT if exact else ROUNDED)

    async def _bring_up(self, policy: Policy) -> None:
        self._asleep, self.served = False, None
        if self._fleet.order is None:
            await self._connect(policy)
        else:
            await self._start(self._fleet.order, policy)
        await self.wire.stamp(policy.version)
        self.life += 1

    async def _start(self, order: Order, policy: Policy) -> None:
        """Start a server with its weights. An adapter is loaded afterwards."""
        rank = _rank(folder_of(policy)) if policy.kind == "lora" else None
        weights = str(folder_of(policy)) if policy.uri.startswith("file:") else order.model
        port, key, output = free_port(), new_key(), LogFile(self._fleet.logs / f"server-{self.number}.log")
        arguments = order.arguments(policy, weights, rank, port)
        try:
            command = Command(arguments=arguments, environment=order.variables(key, self.number))
            server = self._server = ManagedProcess(command, output)
        except OSError as error:
            raise EngineError(f"vLLM cannot be started as {arguments[0]!r}: {error}. Check engine.python.") from error
        wire = self._wire = Wire(f"http://127.0.0.1:{port}", key, self._fleet.silence)
        limit = order.settings.start_timeout
        if not await server.wait_until(wire.healthy, timeout=limit):
            if (server.code or 0) < 0:
                raise Interrupted("it was killed while it started")
            how = f"did not answer within engine.start_timeout = {limit:g} s" if server.code is None else server.how
            await self.close()
            raise EngineError(f"vLLM server {self.number} {how}. Its log {output.path} ends:\n{output.tail()}")
        self.model = NAME
        if policy.kind == "lora":
            await self._take(policy)

    async def _connect(self, policy: Policy) -> None:
        """Wait for a server of `engine.urls`, and load its weights."""
        assert self._url is not None
        wire = self._wire = Wire(self._url, self._fleet.key, self._fleet.silence)
        deadline = time.monotonic() + (RETURN if self.life else 5)
        while not await wire.healthy():
            if time.monotonic() > deadline:
                await self.close()
                raise EngineError(f"No vLLM server answers at {self._url} (engine.urls). Start it, or remove urls: a run starts its own.")
            await asyncio.sleep(0.5)
        self.model = next((str(model["id"]) for model in await wire.models() if not model.get("parent")), NAME)
        if policy != self._fleet.base:
            await self._take(policy)
            await wire.forget()

    def _warn_of_restart(self, policy: Policy, reason: Interrupted) -> None:
        how = "does not answer" if self._server is None or self._server.code is None else self._server.how
        log.warning("vLLM server %d %s (%s). It restarts with version %d.", self.number, how, reason, policy.version)


def _rank(folder: Path) -> int:
    try:
        return int(json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{str(folder)!r} holds no LoRA adapter: {error}. It needs adapter_config.json as peft writes it.") from error
