"""One vLLM server and its weights. If the server dies, it restarts with the same weights."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from agentlightning.contracts.engine import Chunk
from agentlightning.contracts.served_policies import MAIN
from agentlightning.errors import EngineError
from agentlightning.runner.managed_process import Command, ManagedProcess
from agentlightning.runner.process_output import LogFile
from agentlightning.training.weight_sync import EXACT, ROUNDED, WeightCheck, compare_weights, folder_of
from agentlightning.types import IntArray, Policy, Sampling
from agentlightning_vllm.server import HALVES, NAME, Fleet, Order, Room, adapter_name, free_port, new_key
from agentlightning_vllm.tied_head import Weights
from agentlightning_vllm.wire import Interrupted, Wire

log = logging.getLogger("agentlightning.vllm")

TRIES = 3
"""Attempts per load, each with a fresh server."""
RETURN = 120.0
"""Seconds for a server of `engine.urls` to return."""


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
        self.served: dict[str, Policy] = {}
        """The policies it provably serves, by name."""
        self._model = NAME
        """The server's name for the model without an adapter."""
        self._room = Room(0, 0)
        """For the adapters that our server was started for."""
        self._fleet, self._url = fleet, url
        self._server: ManagedProcess | None = None
        self._wire: Wire | None = None
        self._asleep = False
        self._recovery: asyncio.Task[None] | None = None
        self._last_checks: dict[str, WeightCheck] = {}

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise Interrupted("it is not running")
        return self._wire

    @property
    def pid(self) -> int | None:
        """The server's process. None if it is not ours, or not running."""
        return self._server.pid if self._server is not None else None

    def complete(self, name: str, prompt: IntArray, sampling: Sampling, limit: int) -> AsyncGenerator[Chunk]:
        """Sample up to `limit` tokens of a policy. Raises `Interrupted` while it does not provably serve this policy."""
        policy = self.served.get(name)
        if policy is None:
            raise Interrupted("it is not running" if self._wire is None else f"it serves no policy {name!r}")
        return self.wire.complete(self._model_of(policy), prompt, sampling, limit, policy.version)

    async def load(self, policies: Sequence[Policy]) -> dict[str, float]:
        """Serve these policies, and verify those that are new. No request may be in flight.

        Returns the difference of each weight check by the name of its policy.
        """
        for _ in range(TRIES):
            try:
                if self._wire is None:
                    await self._bring_up(policies)
                elif self.served == {policy.name: policy for policy in policies}:
                    return await self._refresh(policies)
                else:
                    await self._change(policies)
                return await self._prove(policies)
            except Interrupted as reason:
                self._warn_of_restart(policies, reason)
                await self.close()
        raise EngineError(
            f"vLLM server {self.number} went away {TRIES} times while loading {_versions(policies)}. See its log in {self._fleet.logs}."
        )

    async def recover(self, life: int, policies: Sequence[Policy], reason: Interrupted) -> None:
        """Restart the server with these policies, unless it is healthy or has already restarted since `life`.

        All requests that wait share one attempt, and its error.
        """
        if self.life != life:
            return
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(policies, reason))
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

    async def _recover(self, policies: Sequence[Policy], reason: Interrupted) -> None:
        await asyncio.sleep(0.1)  # a connection ends a moment before its process
        ended = self._server is not None and self._server.code is not None
        if not ended and self._wire is not None and await self._wire.healthy():
            return
        self._warn_of_restart(policies, reason)
        await self.close()
        await self.load(policies)

    def _forget_recovery(self, recovery: asyncio.Task[None]) -> None:
        self._recovery = None
        if not recovery.cancelled():
            recovery.exception()  # the requests that wait raise it

    async def _refresh(self, policies: Sequence[Policy]) -> dict[str, float]:
        await self.wake()
        if (stamp := await self.wire.stamped()) != _versions(policies):
            raise Interrupted(f"it was restarted from outside, with version {stamp!r}")
        await self.wire.forget()
        return {}

    async def _change(self, policies: Sequence[Policy]) -> None:
        await self.wake()
        new = [policy for policy in policies if policy != self.served.get(policy.name)]
        for policy in new:
            before = self.served.get(policy.name, policy)
            if policy.kind != before.kind:
                raise EngineError(f"vLLM serves a {before.kind} policy and cannot load a {policy.kind} one. Start a new run.")
        self.served = {policy.name: policy for policy in policies if policy not in new}  # the others until verified
        if (reason := await self._must_restart(policies, new)) is not None:
            log.info("vLLM server %d restarts with %s, because it %s.", self.number, _versions(policies), reason)
            await self.close()
            return await self._bring_up(policies)
        await self.wire.pause()
        try:
            for policy in new:
                await self._take(policy)
            await self.wire.forget()
            await self.wire.stamp(_versions(policies))
        finally:
            await self.wire.resume()

    async def _must_restart(self, policies: Sequence[Policy], new: Sequence[Policy]) -> str | None:
        """Return why only a fresh server can serve these policies. None: this one can."""
        if self._fleet.order is None:
            return None
        if not self._room.fits(policies):
            return f"has room for {self._room.adapters} adapters of rank {self._room.rank}"
        for policy in new:
            if policy.name == MAIN and policy.kind == "full" and self._fleet.packs_head:
                weights = await asyncio.to_thread(Weights.read, folder_of(policy))
                if weights.tied and weights.embedding is None:
                    return "cannot load the tied output head"
        return None

    async def _take(self, policy: Policy) -> None:
        folder = folder_of(policy)
        if policy.kind == "lora":
            return await self.wire.adapt(adapter_name(policy.name), str(folder))
        if policy.name != MAIN:
            return  # the model itself
        weights = await asyncio.to_thread(Weights.read, folder)
        if not (self._fleet.packs_head and weights.tied and weights.embedding):
            return await self.wire.reload(str(folder))
        named = await asyncio.to_thread(weights.with_head, weights.embedding)
        try:
            await self.wire.reload(str(named))
        finally:
            await asyncio.to_thread(shutil.rmtree, named, ignore_errors=True)

    async def _prove(self, policies: Sequence[Policy]) -> dict[str, float]:
        """Compare the served weights of new policies with the trainer's weight checks, as far as their folders have one."""
        differences: dict[str, float] = {}
        for policy in policies:
            if policy == self.served.get(policy.name):
                continue
            check = WeightCheck.of(policy)
            if check is not None:
                differences[policy.name] = await self._compare(policy, check)
                self._last_checks[policy.name] = check
            self.served[policy.name] = policy
        return differences

    def _model_of(self, policy: Policy) -> str:
        """Return the server's name for a policy."""
        return adapter_name(policy.name) if policy.kind == "lora" else self._model

    async def _compare(self, policy: Policy, check: WeightCheck) -> float:
        logprobs = await self.wire.score(self._model_of(policy), check.ids)
        before = self._last_checks.get(policy.name)
        difference, wrong = compare_weights(check, logprobs, limit=self._limit(check), before=before)
        if wrong is not None:
            raise EngineError(f"vLLM server {self.number} loaded {_versions([policy])} from {policy.uri}, and {wrong}")
        return difference

    def _limit(self, check: WeightCheck) -> float:
        """Return the maximum difference of a weight check."""
        order = self._fleet.order
        exact = order is not None and order.dtype(check) == "float32" and check.dtype not in HALVES
        return self._fleet.weight_check_limit or (EXACT if exact else ROUNDED)

    async def _bring_up(self, policies: Sequence[Policy]) -> None:
        self._asleep, self.served = False, {}
        if self._fleet.order is None:
            await self._connect(policies)
        else:
            await self._start(self._fleet.order, policies)
        await self.wire.stamp(_versions(policies))
        self.life += 1

    async def _start(self, order: Order, policies: Sequence[Policy]) -> None:
        """Start a server with its weights. Adapters are loaded afterwards."""
        port, key, output = free_port(), new_key(), LogFile(self._fleet.logs / f"server-{self.number}.log")
        arguments, self._room = order.arguments(policies, port), Room.of(policies)
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
        self._model = NAME
        for policy in policies:
            if policy.kind == "lora":
                await self._take(policy)

    async def _connect(self, policies: Sequence[Policy]) -> None:
        """Wait for a server of `engine.urls`, and load its weights."""
        assert self._url is not None
        wire = self._wire = Wire(self._url, self._fleet.key, self._fleet.silence)
        deadline = time.monotonic() + (RETURN if self.life else 5)
        while not await wire.healthy():
            if time.monotonic() > deadline:
                await self.close()
                raise EngineError(f"No vLLM server answers at {self._url} (engine.urls). Start it, or remove urls: a run starts its own.")
            await asyncio.sleep(0.5)
        self._model = next((str(model["id"]) for model in await wire.models() if not model.get("parent")), NAME)
        if list(policies) != [self._fleet.base]:
            for policy in policies:
                await self._take(policy)
            await wire.forget()

    def _warn_of_restart(self, policies: Sequence[Policy], reason: Interrupted) -> None:
        how = "does not answer" if self._server is None or self._server.code is None else self._server.how
        log.warning("vLLM server %d %s (%s). It restarts with %s.", self.number, how, reason, _versions(policies))


def _versions(policies: Sequence[Policy]) -> str:
    """Return the versions of some policies as text: `version 3`, or `writer version 3, editor version 2`."""
    return ", ".join(f"{'' if policy.name == MAIN else f'{policy.name} '}version {policy.version}" for policy in policies)
