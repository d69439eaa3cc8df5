"""One server with the weights that it shall have: whatever happens to it, it is brought back with them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from pathlib import Path

from agentlightning.errors import EngineError
from agentlightning.runner.managed_process import Process
from agentlightning.training.weight_sync import WeightCheck, compare_weights, folder_of
from agentlightning.types import Policy
from agentlightning_vllm.server import ADAPTER, NAME, Order, free_port, new_key
from agentlightning_vllm.wire import Interrupted, Wire

log = logging.getLogger("agentlightning.vllm")

TRIES = 3
"""How often a load is begun again with a server that goes away during it."""
RETURN = 120.0
"""Seconds in which a server of somebody else's must be back."""


class Replica:
    """Used in the engine's own loop only."""

    def __init__(
        self, number: int, order: Order | None, url: str | None, key: str | None, base: Policy, *, silence: float, limit: float, logs: Path
    ) -> None:
        """Either an `order` to start a server with, or the `url` of one that runs. `base` is what a server has without being told."""
        self.number = number
        self.active = 0
        """Requests under way."""
        self.rollouts = 0
        """Rollouts that were given to it so far."""
        self.life = 0
        """How often it was brought up."""
        self.served: Policy | None = None
        """What it is known to serve."""
        self.model = NAME
        """The name under which the server has it."""
        self._order, self._url, self._key, self._base = order, url, key, base
        self._silence, self._limit, self._logs = silence, limit, logs
        self._server: Process | None = None
        self._wire: Wire | None = None
        self._asleep = False
        self._bringing = asyncio.Lock()
        self._probe: WeightCheck | None = None
        """Of what was proven last."""

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise Interrupted("it is not up")
        return self._wire

    @property
    def pid(self) -> int | None:
        """Of the server's process; None: it is not ours, or not up."""
        return self._server.pid if self._server is not None else None

    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve a policy, and prove it. Nothing may be under way."""
        for _ in range(TRIES):
            try:
                if self._wire is None:
                    await self._bring_up(policy)
                elif policy == self.served:
                    return await self._refresh(policy)
                else:
                    await self._change(policy)
                return await self._prove(policy)
            except Interrupted as gone:
                log.warning("vLLM server %d %s (%s); it is brought back with version %d", self.number, self._how(), gone, policy.version)
                await self._end()
        raise EngineError(f"vLLM server {self.number} went away {TRIES} times while it was given {policy.uri}; see {self._logs}")

    async def recover(self, life: int, policy: Policy, why: Interrupted) -> None:
        """Bring the server back with a policy, unless it was brought back after `life`, or is well."""
        async with self._bringing:
            if self.life != life:
                return
            await asyncio.sleep(0.1)  # a connection ends a moment before its process has
            ended = self._server is not None and self._server.code is not None
            if not ended and self._wire is not None and await self._wire.healthy():
                return
            log.warning("vLLM server %d %s (%s); it is brought back with version %d", self.number, self._how(), why, policy.version)
            await self._end()
            await self.load(policy)

    async def sleep(self) -> None:
        """Leave the GPU until the next load or `awake`."""
        if self._wire is not None and not self._asleep:
            with suppress(Interrupted):  # it holds nothing then, and is brought back when it is needed
                await self._wire.sleep()
            self._asleep = True

    async def awake(self) -> None:
        if self._asleep and self._wire is not None:
            with suppress(Interrupted):
                await self._wire.wake()
            self._asleep = False

    async def close(self) -> None:
        await self._end()

    async def _refresh(self, policy: Policy) -> dict[str, float]:
        await self.awake()
        if (stamp := await self.wire.stamped()) != str(policy.version):
            raise Interrupted(f"it was started again by somebody else: it has version {stamp!r}")
        await self.wire.forget()
        return {}

    async def _change(self, policy: Policy) -> None:
        await self.awake()
        if self.served is not None and policy.kind != self.served.kind:
            raise EngineError(f"vLLM serves a policy of kind {self.served.kind!r}, and was asked for one of kind {policy.kind!r}")
        self.served = None  # until it is proven
        await self.wire.pause()
        try:
            await self._take(policy)
            await self.wire.forget()
            await self.wire.stamp(policy.version)
        finally:
            await self.wire.resume()

    async def _take(self, policy: Policy) -> None:
        folder = str(folder_of(policy))
        if policy.kind == "lora":
            await self.wire.adapt(ADAPTER, folder)
            self.model = ADAPTER
        else:
            await self.wire.reload(folder)

    async def _prove(self, policy: Policy) -> dict[str, float]:
        """Compare what is served with the trainer's probe, where the weights have one."""
        probe = WeightCheck.read(folder_of(policy)) if policy.uri.startswith("file:") else None
        if probe is None:
            self.served = policy
            return {}
        difference, wrong = compare_weights(probe, await self.wire.score(self.model, probe.ids), limit=self._limit, before=self._probe)
        if wrong is not None:
            raise EngineError(f"vLLM server {self.number} was given version {policy.version} from {policy.uri}, and {wrong}")
        self.served, self._probe = policy, probe
        return {"weight_check_diff": difference}

    async def _bring_up(self, policy: Policy) -> None:
        self._asleep, self.served = False, None
        if self._order is None:
            await self._meet(policy)
        else:
            await self._start(self._order, policy)
        await self.wire.stamp(policy.version)
        self.life += 1

    async def _start(self, order: Order, policy: Policy) -> None:
        """Start a server with its weights; an adapter is loaded after."""
        rank = _rank(folder_of(policy)) if policy.kind == "lora" else None
        weights = str(folder_of(policy)) if policy.uri.startswith("file:") else order.model
        port, key, file = free_port(), new_key(), self._logs / f"server-{self.number}.log"
        line = order.arguments(policy, weights, rank, port)
        try:
            server = self._server = Process(line, order.variables(key, self.number), file)
        except OSError as error:
            raise EngineError(f"vLLM cannot be started as {line[0]!r}: {error}") from error
        wire = self._wire = Wire(f"http://127.0.0.1:{port}", key, self._silence)
        until = time.monotonic() + order.settings.start_timeout
        while not await wire.healthy():
            if server.code is not None or time.monotonic() > until:
                how = (
                    server.how if server.code is not None else f"is not up after {order.settings.start_timeout:g} s (engine.start_timeout)"
                )
                await self._end()
                raise EngineError(f"a vLLM server that was started {how}; its log {file} ends:\n{server.tail()}")
            await asyncio.sleep(0.25)
        self.model = NAME
        if policy.kind == "lora":
            await self._take(policy)

    async def _meet(self, policy: Policy) -> None:
        """Wait for a server of somebody else's, and give it the weights."""
        assert self._url is not None
        wire = self._wire = Wire(self._url, self._key, self._silence)
        until = time.monotonic() + (RETURN if self.life else 5)
        while not await wire.healthy():
            if time.monotonic() > until:
                await self._end()
                raise EngineError(f"no vLLM server answers at {self._url} (engine.urls); start it, or leave urls out to have one started")
            await asyncio.sleep(0.5)
        self.model = next((str(each["id"]) for each in await wire.models() if not each.get("parent")), NAME)
        if policy != self._base:
            await self._take(policy)
            await wire.forget()

    async def _end(self) -> None:
        if self._wire is not None:
            await self._wire.close()
            self._wire = None
        if self._server is not None:
            await self._server.stop()
            self._server = None

    def _how(self) -> str:
        return "does not answer" if self._server is None or self._server.code is None else self._server.how


def _rank(folder: Path) -> int:
    try:
        return int(json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"no LoRA adapter in {str(folder)!r}: {error}; expected adapter_config.json as peft writes it") from error
