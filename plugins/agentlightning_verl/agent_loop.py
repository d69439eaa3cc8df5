"""For users of verl: `python -m verl.trainer.main_ppo` trains agents as they are, with these two lines added to its command.

    actor_rollout_ref.rollout.agent.agent_loop_manager_class=agentlightning_verl.agent_loop.LightningAgentLoopManager
    actor_rollout_ref.rollout.agent.agent_loop_config_path=agent.toml

`agent.toml` has the fields of `AgentConfig`. Each row of verl's data is a task: the agent is given its fields. The agent's model calls come
through our gateway to verl's own servers and are recorded in our store to the token; what verl trains on are the root-to-leaf rows of the
attempt. Advantages are verl's. This module is imported in verl's environment only.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from msgspec.structs import replace
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from agentlightning.config.schema import RunnerSettings
from agentlightning.config.tables import build, naming
from agentlightning.contracts.engine import Chunk, Engine, EngineInfo
from agentlightning.contracts.store import RolloutState
from agentlightning.errors import AgentError, ConfigError, EngineError, UnsupportedSetting
from agentlightning.gateway import Gateway
from agentlightning.registry.registry import load_object, registry
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import leaf_rows
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.types import IntArray, Policy, Rollout, Sampling, Task, Trajectory, floats, ints, new_id

log = logging.getLogger("agentlightning.verl")
ENDED = ("succeeded", "failed", "cancelled")
PRIVATE = ("uid", "global_steps", "validate", "agent_name", "priority", "__rollout_n__", "__do_sample__", "tools_kwargs")
"""Fields of a row that are verl's own business; the task has the others."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What stands in `agent_loop_config_path`."""

    agent: str
    """`module:function`, called with `(task, llm)`; the task is the row of verl's data."""
    adapters: tuple[str, ...] = ()
    """Framework adapters to install."""
    models: tuple[str, ...] = ()
    """Names by which the agent's code asks for the model in training, where it names another one."""
    agents: tuple[str, ...] | None = None
    """Names or patterns of the agents to train; absent: all."""
    reward_weights: dict[str, float] = field(default_factory=dict[str, float])
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    store: str = "sqlite:agl.db"
    """Where every rollout, token and reward is recorded."""
    path: str | None = None
    """Folder from which the agent is imported; absent: the file's."""

    def __post_init__(self) -> None:
        if self.runner.workers:
            raise UnsupportedSetting(
                f"runner.workers is {self.runner.workers}; under verl the agents run in its own process, so leave it out"
            )


class LightningAgentLoopManager:
    """See verl's `AgentLoopManager`: `generate_sequences` does not wait; what comes of it goes into TransferQueue."""

    @classmethod
    def create(
        cls, config: Any, llm_client: Any, teacher_client: Any = None, reward_loop_worker_handles: Any = None
    ) -> LightningAgentLoopManager:
        """Open store, gateway and runner. Raises `ConfigError` for what cannot be, before the first rollout."""
        if teacher_client:
            raise UnsupportedSetting("distillation: agents of Agent Lightning give no log-probabilities of a teacher")
        return cls(config, llm_client)

    def __init__(self, config: Any, llm_client: Any) -> None:
        self.rollout = rollout = config.actor_rollout_ref.rollout
        if rollout.top_p != 1 or rollout.top_k not in (-1, 0):
            raise UnsupportedSetting(
                f"actor_rollout_ref.rollout samples with top_p {rollout.top_p} and top_k {rollout.top_k}; agents are trained on samples of "
                "the whole distribution: top_p=1, top_k=-1"
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
        """Begin the rollouts of a batch of prompts, of each as many as `rollout.n` says."""
        validate = "validate" in prompts and bool(prompts["validate"])
        for row in rows_of(prompts):
            task = asyncio.run_coroutine_threadsafe(self._prompt(row, validate), self._loop)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop runner and gateway. (verl itself ends with its process.)"""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # Below: the manager's loop.

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
        """Without runners nothing ends by itself."""
        why = None if runner.cancelled() else runner.exception()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(AgentError(f"the runners ended: {why}"))
        self._waiting.clear()

    async def _watch(self) -> None:
        """Hand each rollout that has ended to whoever waits for it."""
        cursor = await self.store.wait(0, timeout=0)
        while True:
            states, cursor = await self.store.list(after=cursor, order="changed", limit=1000)
            for state in states:
                if state.status in ENDED and (future := self._waiting.pop(state.rollout.id, None)) is not None:
                    future.set_result(state)
            if not states:
                await self.store.wait(cursor, timeout=10)

    async def _prompt(self, row: dict[str, Any], validate: bool) -> None:
        """All rollouts of one prompt; verl is told how it ended when the last of them has."""
        uid, partition = row["uid"], "eval" if validate else "train"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": "running"})
        try:
            ends = [await each for each in await self._begin(row, validate)]
            done = [await self._session(row, session, state, partition) for session, state in enumerate(ends)]
            status = "finished" if all(done) else "failure"
        except Exception as error:
            log.error("prompt %s failed", uid, exc_info=error)
            status = "failure"
        await tq.async_kv_put(key=uid, partition_id=partition, tag={"status": status})

    async def _session(self, row: dict[str, Any], session: int, state: RolloutState, partition: str) -> bool:
        """Hand one rollout's samples over; whether there were any."""
        _, records = await self.store.read(state.rollout.id)
        found = trajectory(state, records, agents=self.config.agents, reward_weights=self.config.reward_weights)
        try:
            outputs = samples_of(found)
        except AgentError as error:
            log.warning("rollout %d of prompt %s is left out: %s", session, row["uid"], error)
            return False
        await self._put(row, session, outputs, partition)
        return True

    async def _begin(self, row: dict[str, Any], validate: bool) -> list[asyncio.Future[RolloutState]]:
        """Queue the rollouts of a prompt; what will come of each."""
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
        self._waiting.update(zip((each.id for each in rollouts), futures, strict=True))
        await self.store.add(rollouts)
        return futures

    async def _put(self, row: dict[str, Any], session: int, outputs: Sequence[AgentLoopOutput], partition: str) -> None:
        """One attempt's samples, under the keys and with the fields that verl's own agent loops have."""
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


class ServerEngine(Engine):
    """verl's servers as an `Engine`. Which weights they have is verl's business; each reply says its version."""

    def __init__(self, client: Any, info: EngineInfo, *, seeded: bool) -> None:
        self.info = info
        self.policy = Policy(version=0, base=info.model, uri="verl:")
        self._client, self._seeded = client, seeded

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """The whole reply as one chunk."""
        room = self.info.context_length - len(prompt_ids)
        limit = min(room, sampling.max_tokens or room)
        output = await self._client.generate(
            request_id=rollout or new_id(),
            prompt_ids=prompt_ids.tolist(),
            sampling_params={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or -1,
                "repetition_penalty": 1.0,
                "max_tokens": limit,
                "stop_token_ids": list(sampling.stop_ids),
                "logprobs": True,
                **({"seed": sampling.seed % 2**63} if self._seeded and sampling.seed is not None else {}),
            },
        )
        if output.stop_reason == "aborted":
            raise EngineError("verl's server aborted the reply")
        ids, version = list(output.token_ids), output.extra_fields.get("global_steps")
        scores = None if output.log_probs is None else floats(output.log_probs)
        finish = "length" if len(ids) >= limit and ids[-1] not in sampling.stop_ids else "stop"
        yield Chunk(ints(ids), scores, -1 if version is None else int(version), finish)

    async def load(self, policy: Policy) -> dict[str, float]:
        """Raises `UnsupportedSetting`: verl loads its servers itself."""
        raise UnsupportedSetting("verl loads its servers itself")

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


def read_config(path: str | None) -> AgentConfig:
    """The agent's settings. `ConfigError` names the file and the key."""
    if not path:
        raise ConfigError(
            'actor_rollout_ref.rollout.agent.agent_loop_config_path names no file; expected one with agent = "module:function" '
            "(agentlightning_verl.agent_loop.AgentConfig has the other keys)"
        )
    file = Path(path)
    with naming(file):
        try:
            table = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"the agent's configuration cannot be read: {error}") from error
        config = build(AgentConfig, table)
    folder = str((file.resolve().parent / (config.path or "")).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return config


def rows_of(prompts: TensorDict) -> list[dict[str, Any]]:
    """The rows of a batch of verl's, each as its fields."""

    def value(column: Any, index: int) -> Any:
        if isinstance(column, NonTensorStack):
            return column[index].data
        return column.data if isinstance(column, NonTensorData) else column[index]

    return [{name: value(column, index) for name, column in prompts.items()} for index in range(len(prompts))]


def task_of(row: Mapping[str, Any]) -> Any:
    """What the agent is given of a row: all that is no tensor and not verl's own, as JSON has it."""
    return {name: _plain(value) for name, value in row.items() if not isinstance(value, torch.Tensor) and name not in PRIVATE}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def samples_of(found: Trajectory) -> list[AgentLoopOutput]:
    """The root-to-leaf rows of an attempt, in the order of their last call; each sampled token is trained in exactly one. Raises
    `AgentError` where there is nothing to train, or no reward."""
    if found.status != "succeeded" or found.reward is None:
        raise AgentError(f"rollout {found.rollout_id} {found.status} without a reward: {found.error or 'nobody scored it'}")
    # a greedy reply is never trained, and verl wants its rows all the same: it scores validation by them
    greedy = [replace(each, temperature=1.0, trained=True) if not each.temperature else each for each in found.transitions]
    shown = replace(found, transitions=tuple(greedy))
    batch = make_batch([shown], [np.ones(len(shown.transitions))])
    packs = sorted((each for each in leaf_rows(batch) if each.trained.any()), key=lambda each: int(batch.transition[each.index].max()))
    if not packs:
        why = batch.untrained[0].reason if batch.untrained else "it never called the model"
        raise AgentError(f"rollout {found.rollout_id} has nothing to train: {why}")
    outputs: list[AgentLoopOutput] = []
    for pack in packs:
        first = int(np.flatnonzero(pack.trained)[0])
        ids, index, mask = batch.token_ids[pack.index], pack.index[first:], pack.trained[first:]
        versions = batch.version[index[mask]]
        outputs.append(
            AgentLoopOutput(
                prompt_ids=ids[:first].tolist(),
                response_ids=ids[first:].tolist(),
                response_mask=mask.astype(int).tolist(),
                response_logprobs=np.where(mask, batch.rollout_logprobs[index], 0.0).tolist(),
                reward_score=found.reward,
                num_turns=2 * len(found.transitions),
                metrics=AgentLoopMetrics(),
                extra_fields={
                    "reward_extra_info": {},
                    "min_global_steps": int(versions.min()),
                    "max_global_steps": int(versions.max()),
                },
            )
        )
    return outputs
