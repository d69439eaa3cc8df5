"""Where the trajectories of a step come from when a deployed agent made them: production rollouts, found in the store that it fills.

A rollout can be taken once it has ended and is scored; the one that ended first comes first, and each is taken at most once: not again
in this run, nor in one that goes on from its weights, whatever rewards still come. The store is only read, and only as far as a step
needs. What is taken follows from the store and from what was trained, so that a resumed run goes on as an uninterrupted one would have, as
long as the store stays as it is.
"""

from __future__ import annotations

import asyncio
import re
import time
import tomllib
from bisect import insort
from collections import Counter, deque
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from agentlightning.algorithms.base import Algorithm
from agentlightning.config.schema import Config, store_file
from agentlightning.config.tables import build_step_rewards
from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import RewardError, RunError, StoreError
from agentlightning.gateway.rendering.renderer import load_tokenizer
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.training.collector import Stopped
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import Plan
from agentlightning.types import JSON, Completion, Task, Trajectory, Transition, ints

UNSCORED = "without a reward so far"
ALONE = "with no other rollout of their task to compare with"
CONTRADICTED = "with rewards that contradict each other, or are no finite numbers"
NO_CALL = "without a model call"
OTHER_TOKENIZER = "recorded with another tokenizer than that of the model that is trained"
UNKNOWN_TOKENIZER = "recorded without saying with which tokenizer"
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A rollout that has ended."""

    seq: int
    """The store's sequence number of its end."""
    id: str


@dataclass(slots=True)
class _Unscored:
    found: Found
    task: str
    ended: float
    due: float
    """When to look at it again, seconds since the epoch."""


class ProductionReplay:
    """Finds the rollouts of the steps of one run. See the module."""

    PAGE = 200
    """Rollouts listed at once."""
    SOONEST, LATEST = 2.0, 600.0
    """Seconds until a rollout without a reward is looked at again: a tenth of its age, within these."""

    def __init__(
        self,
        store: LightningStore,
        *,
        tokenizer: str,
        compares: bool,
        wait: bool = False,
        taken: Collection[str] = (),
        reading: Mapping[str, Any],
        progress: Progress,
        stop: asyncio.Event,
    ) -> None:
        """`tokenizer`: hash of the trained model's. `compares`: the algorithm compares the rollouts of a task, so that a step is made of
        whole groups. `taken`: ids of rollouts that were trained before. `reading`: further arguments of `trajectory`."""
        self._store, self._tokenizer, self._compares, self._wait = store, tokenizer, compares, wait
        self._reading, self._progress, self._stop = reading, progress, stop
        self._known = set(taken)
        """Ids that need not be looked at when they are listed."""
        self._cursor = 0
        self._page: deque[RolloutState] = deque()
        self._ready: dict[str, list[Found]] = {}
        """By task, those of which something can be trained, in order."""
        self._beside: dict[str, list[Found]] = {}
        """By task, those that are scored and have nothing to train: they count in the baseline of their group (law 5)."""
        self._unscored: dict[str, _Unscored] = {}
        self._left: dict[str, str] = {}
        """Why nothing of a rollout is trained, by its id."""

    # --- what a run asks ---

    async def next(self, tasks: int, group_size: int) -> list[Trajectory]:
        """The trajectories of the next step: `group_size` rollouts of each of so many tasks, grouped by their task. An algorithm that
        compares none gets as many rollouts of any tasks.

        Without `wait` the last steps are made of what is there: smaller groups of two or more, fewer rollouts, in the end none.
        """
        count, size = (tasks, group_size) if self._compares else (tasks * group_size, 1)
        told = False
        while True:
            seq = await self._store.wait(0, timeout=0) if self._wait else 0
            if await self._fill(count, size):
                break
            pause = await self._look_again(time.time())
            if self._full(size) >= count or not self._wait:
                break
            self._tell(count, size, aloud=not told)
            told = True
            await self._change(seq, pause)
        chosen = choose(self._ready, self._beside, count, size, least=self._least, whole=self._wait)
        return [each for task, members in chosen.items() for each in await self._take(task, members)]

    async def more(self) -> bool:
        """Whether there is anything for another step; always, where it waits for more. Raises `Stopped`."""
        if self._wait or any(self._trainable(task) for task in self._ready):
            return True
        self._progress.phase("reading the store")
        while (state := await self._following()) is not None:
            await self._look(state)
            if self._trainable(state.rollout.task.id):
                return True
        await self._look_again(float("inf"))
        return any(self._trainable(task) for task in self._ready)

    def counts(self) -> dict[str, int]:
        """Of the rollouts that were looked at and not taken, by the names of `metrics.jsonl`."""
        waiting = sum(map(len, self._ready.values()))
        return {"replay.waiting": waiting, "replay.unscored": len(self._unscored), "replay.left_out": len(self._left)}

    def account(self) -> str:
        """The rollouts that were looked at and not taken, in words."""
        why = Counter(self._left.values())
        why[ALONE if self._compares else "waiting for the next step"] += self.counts()["replay.waiting"]
        why[UNSCORED] += len(self._unscored)
        return "; ".join(f"{count:,} {reason}" for reason, count in why.most_common() if count)

    # --- inside ---

    @property
    def _least(self) -> int:
        """Rollouts of a group that can be trained."""
        return 2 if self._compares else 1

    def _trainable(self, task: str) -> bool:
        ready = len(self._ready.get(task, ()))
        return bool(ready) and ready + len(self._beside.get(task, ())) >= self._least

    def _full(self, size: int) -> int:
        """Whole groups that are there."""
        return sum(len(members) // size for members in self._ready.values())

    async def _fill(self, count: int, size: int) -> bool:
        """Look at rollouts until so many whole groups are there; False: the list ended before."""
        full = self._full(size)
        while full < count:
            state = await self._following()
            if state is None:
                return False
            task = state.rollout.task.id
            before = len(self._ready.get(task, ())) // size
            await self._look(state)
            full += len(self._ready.get(task, ())) // size - before
        return True

    async def _following(self) -> RolloutState | None:
        """The next production rollout that has ended; None: there is none so far."""
        if self._stop.is_set():
            raise Stopped
        if not self._page:
            states, self._cursor = await self._store.list(
                after=self._cursor, limit=self.PAGE, status=ENDED, mode="production", order="changed"
            )
            self._page.extend(states)
        return self._page.popleft() if self._page else None

    async def _look(self, state: RolloutState) -> None:
        if state.rollout.id not in self._known:
            self._known.add(state.rollout.id)
            ended = max((each.finished or 0.0 for each in state.attempts), default=0.0)
            await self._judge(_Unscored(Found(state.seq, state.rollout.id), state.rollout.task.id, ended, 0.0))

    async def _look_again(self, now: float) -> float:
        """Look at those without a reward that are due; the seconds until the next one is."""
        for each in [each for each in self._unscored.values() if each.due <= now]:
            if self._stop.is_set():
                raise Stopped
            await self._judge(each)
        return max(0.0, min((each.due for each in self._unscored.values()), default=float("inf")) - time.time())

    async def _judge(self, each: _Unscored) -> None:
        """Put a rollout where it belongs."""
        found, now = each.found, time.time()
        self._unscored.pop(found.id, None)
        made, ours = await self._read(found.id)
        if made is None:
            return
        if made.reward is None and made.status == "succeeded":
            each.due = now + min(max((now - each.ended) / 10, self.SOONEST), self.LATEST)
            self._unscored[found.id] = each
        elif made.reward is None:
            self._left[found.id] = f"that ended as {made.status!r}"
        elif any(t.trained and len(t.response_ids) for t in made.transitions):
            insort(self._ready.setdefault(each.task, []), found)
        else:
            self._left[found.id] = why_not(made)
            if self._compares and ours:
                insort(self._beside.setdefault(each.task, []), found)

    async def _read(self, rollout_id: str) -> tuple[Trajectory | None, bool]:
        """The trajectory (None: its rewards make no outcome, which is noted), and whether it is one of a policy like ours: that it called
        no model of another tokenizer alone."""
        state, records = await self._store.read(rollout_id)
        try:
            made = trajectory(state, records, **self._reading)
        except RewardError:
            self._left[rollout_id] = CONTRADICTED
            return None, False
        tokenizers = {completion.tokenizer for each in records for completion in each.completions}
        return foreign(made, records, self._tokenizer), not tokenizers or self._tokenizer in tokenizers

    async def _take(self, task: str, members: Sequence[Found]) -> list[Trajectory]:
        """Read some rollouts of a task, and those beside them, as one group; none of them is taken again."""
        gone = set(members)
        self._ready[task] = [each for each in self._ready[task] if each not in gone]
        if not self._ready[task]:
            del self._ready[task]
        beside = self._beside.pop(task, [])
        for each in beside:
            del self._left[each.id]
        read = [await self._read(each.id) for each in sorted([*members, *beside])]
        made = [each for each, _ in read if each is not None]
        return [replace(each, group=each.task.id, index=index) for index, each in enumerate(made)]

    def _tell(self, count: int, size: int, *, aloud: bool) -> None:
        """Say what is waited for."""
        kind = f"groups of {size} rollouts" if self._compares else "rollouts"
        self._progress.phase("waiting for production")
        self._progress.rollouts(self._full(size), count, len(self._unscored))
        if aloud:
            unscored = f"; {len(self._unscored):,} have no reward so far" if self._unscored else ""
            self._progress.message(f"waiting for production: {self._full(size):,} of {count:,} {kind} are there and scored{unscored}")

    async def _change(self, seq: int, pause: float) -> None:
        """Return when a rollout has come or ended, or after a pause. Raises `Stopped`."""
        change = asyncio.create_task(self._store.wait(seq, timeout=min(pause, self.LATEST)))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([change, stop], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                raise Stopped
            await change
        finally:
            change.cancel()
            stop.cancel()
            await asyncio.gather(change, stop, return_exceptions=True)


class NoTasks:
    """The sampler of a run that has no tasks, for its rollouts are found."""

    def next(self, count: int) -> list[Task]:
        return []

    def state(self) -> dict[str, JSON]:
        return {}

    def restore(self, state: dict[str, JSON]) -> None:
        pass


def choose(
    ready: Mapping[str, Sequence[Found]], beside: Mapping[str, Sequence[Found]], count: int, size: int, *, least: int, whole: bool
) -> dict[str, list[Found]]:
    """What a step takes, by task: the `count` groups of `size` rollouts that were whole first. Where there are fewer, and these need not be
    whole, also what is left of tasks with at least `least` rollouts (those beside them count), the oldest first."""
    groups = [
        (members[k + size - 1], task, members[k : k + size])
        for task, members in ready.items()
        for k in range(0, len(members) - size + 1, size)
    ]
    chosen = sorted(groups)[:count]
    if not whole and len(chosen) < count:
        rests = [
            (members[-(len(members) % size)], task, members[-(len(members) % size) :])
            for task, members in ready.items()
            if len(members) % size
        ]
        fit = [each for each in rests if len(each[2]) + len(beside.get(each[1], ())) >= least]
        chosen += sorted(fit)[: count - len(chosen)]
    taken: dict[str, list[Found]] = {}
    for _, task, members in chosen:
        taken.setdefault(task, []).extend(members)
    return taken


def foreign(made: Trajectory, records: Sequence[AttemptRecords], tokenizer: str) -> Trajectory:
    """A trajectory of another policy: its versions are none of ours, and tokens of another tokenizer are not trained."""
    completions = {completion.id: completion for each in records for completion in each.completions}
    return replace(made, transitions=tuple(_foreign(each, completions[each.completion_id], tokenizer) for each in made.transitions))


def _foreign(transition: Transition, completion: Completion, tokenizer: str) -> Transition:
    ours = replace(transition, versions=ints(np.full(len(transition.response_ids), -1)))
    if not transition.trained or completion.tokenizer == tokenizer:
        return ours
    return replace(ours, trained=False, reason=OTHER_TOKENIZER if completion.tokenizer else UNKNOWN_TOKENIZER)


def why_not(made: Trajectory) -> str:
    """Why nothing of a scored trajectory can be trained: the reason of most of its tokens."""
    reasons: Counter[str] = Counter()
    for each in made.transitions:
        reasons[each.reason or "no token was sampled"] += max(1, len(each.response_ids))
    return f"not to be trained ({reasons.most_common(1)[0][0]})" if reasons else NO_CALL


def open_filled(address: str) -> LightningStore:
    """A store that somebody has filled; `StoreError` where there is none, in place of a new one."""
    file = store_file(address)
    if file is not None and not file.is_file():
        raise StoreError(
            f"replay.store: there is no store file {str(file)!r}; `agl serve` and `agl.rollout` make it where AGL_STORE says, or as "
            "agl.db in their folder"
        )
    return open_store(address)


@asynccontextmanager
async def open_source(
    plan: Plan, algorithm: Algorithm, *, progress: Progress, stop: asyncio.Event, taken: Collection[str] = ()
) -> AsyncGenerator[ProductionReplay | None]:
    """The source that a config names; None: it names none. `taken`: what this run has trained already."""
    config = plan.config
    if config.replay is None:
        yield None
        return
    store = open_filled(config.replay.store)
    try:
        _, tokenizer = await asyncio.to_thread(load_tokenizer, plan.files.name, plan.files.path)
        learned = await asyncio.to_thread(learned_before, config)
        yield ProductionReplay(
            store,
            tokenizer=tokenizer,
            compares=algorithm.needs.group,
            wait=config.replay.wait,
            taken=learned | set(taken),
            reading={
                "agents": config.agents,
                "reward_weights": config.reward_weights,
                "step_rewards": build_step_rewards(config.step_rewards),
            },
            progress=progress,
            stop=stop,
        )
    finally:
        await store.close()


async def check_source(plan: Plan, algorithm: Algorithm, *, progress: Progress, stop: asyncio.Event) -> None:
    """`StoreError` where a run would find nothing to train, and does not wait for it."""
    async with open_source(plan, algorithm, progress=progress, stop=stop) as source:
        if source is not None and not await source.more():
            assert plan.config.replay is not None
            raise StoreError(
                f"replay.store: there is nothing to train in {plan.config.replay.store!r}; its production rollouts: "
                f"{source.account() or 'none has ended'}. `agl.rollout(task)` beside `agl serve` records them, agl.reward and "
                "agl.reward_later score them; replay.wait = true waits for that"
            )


def learned_before(config: Config) -> set[str]:
    """Ids of the rollouts that made the weights which a run starts from: of the runs whose checkpoints they are, one after the other."""
    found: set[str] = set()
    model, base = config.model, Path(config.path or ".")
    while (match := re.fullmatch(r"step-(\d+)", (path := (base / model).resolve()).name)) and path.parent.name == "checkpoints":
        run = RunFolder(path.parent.parent)
        found |= run.read_batches(int(match[1])).keys()
        try:
            earlier = tomllib.loads(run.config.read_text())
            model, base = str(earlier["model"]), Path(str(earlier.get("path", ".")))
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"model is a checkpoint of {run.path}, whose config.toml cannot be read: {error}") from error
    return found
