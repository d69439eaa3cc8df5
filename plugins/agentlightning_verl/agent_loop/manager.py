"""Runs the rollouts of verl's prompts, in its own thread and event loop."""

# verl has an environment of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from agentlightning.contracts.engine import EngineInfo
from agentlightning.contracts.store import RolloutState
from agentlightning.errors import AgentError, UnsupportedSetting
from agentlightning.gateway import Gateway
from agentlightning.registry.registry import load_object, registry
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.types import Rollout, Sampling, Task
from agentlightning_verl.agent_loop.config import read_config
from agentlightning_verl.agent_loop.engine import ServerEngine
from agentlightning_verl.agent_loop.samples import prompt_rows, samples_of, task_of

log = logging.getLogger("agentlightning.verl")
ENDED = ("succeeded", "failed", "cancelled")


class LightningAgentLoopManager:
    """See verl's `AgentLoopManager`. `generate_sequences` does not wait, and samples go to TransferQueue."""

    @classmethod
    def create(
        cls, config: Any, llm_client: Any, teacher_client: Any = None, reward_loop_worker_handles: Any = None
    ) -> LightningAgentLoopManager:
        """Open store, gateway and runner. Raises `ConfigError` before the first rollout."""
        if teacher_client:
            raise UnsupportedSetting("distillation: agents give no log-probabilities of a teacher. Turn it off.")
        return cls(config, llm_client)

    def __init__(self, config: Any, llm_client: Any) -> None:
        self.rollout = rollout = config.actor_rollout_ref.rollout
        if rollout.top_p != 1 or rollout.top_k not in (-1, 0):
            raise UnsupportedSetting(
                f"actor_rollout_ref.rollout samples with top_p {rollout.top_p} and top_k {rollout.top_k}. Training needs samples of the "
                "full distribution: set top_p=1 and top_k=-1."
            )
        self.config = read_config(rollout.agent.agent_loop_config_path)
        path = config.actor_rollout_ref.model.path
        context = rollout.get("max_model_len") or rollout.prompt_length + rollout.response_length
        self.engine = ServerEngine(llm_client, EngineInfo(Path(path).name, path, int(context)), seeded=rollout.name == "vllm")
        self._waiting: dict[str, asyncio.Future[RolloutState]] = {}
        self._tasks: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="agl-verl", daemon=True).start()
        self._wait(self._open())

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Start `rollout.n` rollouts for each prompt in a batch."""
        validate = "validate" in prompts and bool(prompts["validate"])
        for row in prompt_rows(prompts):
            task = asyncio.run_coroutine_threadsafe(self._prompt(row, validate), self._loop)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop the runner and the gateway."""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # Below: the manager's event loop.

    async def _open(self) -> None:
        tq.init()
        config = self.config
        for adapter in config.adapters:
            registry().load("adapters", adapter)(config.models)
        agent = load_object(config.agent)
        self.store = open_store(config.store)
        self.gateway = Gateway(self.store, self.engine, models=config.models)
        await self.gateway.start()
        self._runner = asyncio.create_task(Runner(self.store, agent, self.gateway.llm, config.runner).run())
        self._runner.add_done_callback(self._ended)
        self._watcher = asyncio.create_task(self._watch())

    async def _close(self) -> None:
        for task in (self._runner, self._watcher):
            task.cancel()
        await asyncio.gather(self._runner, self._watcher, return_exceptions=True)
        await self.gateway.stop()
        await self.store.close()

    def _ended(self, runner: asyncio.Task[None]) -> None:
        """Fail the waiting prompts, because without a runner no rollout ends."""
        reason = None if runner.cancelled() else runner.exception()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(AgentError(f"The runner ended: {reason}"))
        self._waiting.clear()

    async def _watch(self) -> None:
        """Pass each finished rollout to its prompt."""
        cursor = await self.store.wait(0, timeout=0)
        while True:
            states, cursor = await self.store.list(after=cursor, order="changed", limit=1000)
            for state in states:
                if state.status in ENDED and (future := self._waiting.pop(state.rollout.id, None)) is not None:
                    future.set_result(state)
            if not states:
                await self.store.wait(cursor, timeout=10)

    async def _prompt(self, row: dict[str, Any], validate: bool) -> None:
        """Run all rollouts of one prompt, then report its status to verl."""
        uid, partition = row["uid"], "val" if validate else "train"  # verl's names
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "running"})
        try:
            states = [await future for future in await self._begin(row, validate)]
            trained = [await self._session(row, session, state, partition) for session, state in enumerate(states)]
            status = "finished" if all(trained) else "failure"
        except Exception as error:
            log.error("Prompt %s failed.", uid, exc_info=error)
            status = "failure"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": status})

    async def _session(self, row: dict[str, Any], session: int, state: RolloutState, partition: str) -> bool:
        """Give one rollout's samples to verl. Return True if it had any."""
        _, records = await self.store.read(state.rollout.id)
        attempt = trajectory(state, records, agents=self.config.agents, reward_weights=self.config.reward_weights)
        try:
            outputs = samples_of(attempt)
        except AgentError as error:
            log.warning("Rollout %d of prompt %s is excluded. %s", session, row["uid"], error)
            return False
        await self._put(row, session, outputs, partition)
        return True

    async def _begin(self, row: dict[str, Any], validate: bool) -> list[asyncio.Future[RolloutState]]:
        """Queue the rollouts of a prompt. Return a future for the end of each."""
        settings = self.rollout.val_kwargs if validate else self.rollout
        greedy = not (settings.do_sample if validate else row.get("__do_sample__", True))
        sampling = Sampling(temperature=0.0 if greedy else float(settings.temperature), max_tokens=int(self.rollout.response_length))
        task = Task(str(row["uid"]), task_of(row))
        rollouts = [
            Rollout(
                task=task,
                mode="eval" if validate else "train",
                group=str(row["uid"]),
                index=index,
                step=int(row["global_steps"]),
                sampling=sampling,
                max_attempts=self.config.runner.attempts,
            )
            for index in range(int(row.get("__rollout_n__", settings.n)))
        ]
        futures = [self._loop.create_future() for _ in rollouts]
        self._waiting.update(zip((rollout.id for rollout in rollouts), futures, strict=True))
        await self.store.add(rollouts)
        return futures

    async def _put(self, row: dict[str, Any], session: int, outputs: Sequence[AgentLoopOutput], partition: str) -> None:
        """Put one attempt's samples into TransferQueue, with the keys and fields of verl's own agent loops."""
        keys, fields, tags = [], [], []
        for number, output in enumerate(outputs):
            values = output.as_dict()
            ids = torch.cat([values["prompts"], values["responses"]])
            values.update(row)
            values |= {
                "session_id": session,
                "loss_mask": values["response_mask"],
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)),
                "multi_modal_inputs": {},
            }
            keys.append(f"{row['uid']}_{session}_{number}")
            fields.append(values)
            lengths = {"prompt_len": len(output.prompt_ids), "response_len": len(output.response_ids), "seq_len": len(ids)}
            versions = {name: output.extra_fields[name] for name in ("min_global_steps", "max_global_steps")}
            tags.append({"status": "success", "global_steps": row["global_steps"], **lengths, **versions})
        await tq.async_kv_batch_put(keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id=partition)
