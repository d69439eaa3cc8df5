"""`agl.train`: agents, tasks and a model in; a run out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from agentlightning.algorithms.lightning import algorithm_from
from agentlightning.config.schema import Config, build, check_names, to_toml
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import LightningError
from agentlightning.registry.registry import registry
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.runner import Agent
from agentlightning.training.chart import reward_chart
from agentlightning.training.collector import Stopped
from agentlightning.training.metrics import Trackers, cut_metrics, read_metrics
from agentlightning.training.production import NoTasks, check_source, open_source
from agentlightning.training.progress import Progress, Silent, make_progress
from agentlightning.training.run_folder import RunFolder, RunState, write_file
from agentlightning.training.services import open_stack, plan
from agentlightning.training.session import Session
from agentlightning.types import JSON, Task

T = TypeVar("T")
INLINE = "(given as values)"


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run left behind."""

    folder: Path
    result: dict[str, Any]
    """The content of `result.json`."""
    stopped: bool = False
    """Whether it was stopped before its last step; `resume` goes on."""

    @property
    def checkpoint(self) -> Path:
        """The folder of the best trained weights by eval reward (of the last ones where none was better or measured); loads with plain
        `AutoModelForCausalLM.from_pretrained`."""
        return self.folder / str(self.result["checkpoint"])


@dataclass(frozen=True, slots=True)
class Job:
    """A config with what cannot stand in a file: the agent as an object, tasks as values."""

    config: Config
    agent: str | Agent | None
    tasks: list[Task] = field(repr=False)
    eval_tasks: list[Task] = field(repr=False)


def train(
    agent: Agent | str | None = None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    progress: Progress | bool = True,
    resume: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train an agent's model by reinforcement, and return when it is done.

    `agent(task, llm) -> float` is any sync or async callable, or `"module:function"`; it returns the reward, or None and calls
    `agl.reward(value)`. `tasks` and `eval_tasks` are lists of JSON values, or .jsonl files. Further settings are those of `Config`, with
    the tables as mappings or settings objects: `model`, `steps`, `tasks_per_step`, `algorithm=LightningRL(...)`, `sampling`, `engine`,
    `trainer`, `runner`, `evaluate`, `seed`, `name`, `folder`, ... With `replay={"store": ...}` it trains on what a deployed agent did, and
    needs no tasks, and an agent only to evaluate `eval_tasks`.

    Runs in a thread with an event loop of its own, so it works in notebooks. The first Ctrl-C stops between two steps and leaves a run
    that `resume` goes on with; the second stops at once. Raises `LightningError`s that say what is wrong.
    """
    return run_job(make_job(agent, tasks=tasks, **settings), resume=resume, progress=progress)


async def train_async(
    agent: Agent | str | None = None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    progress: Progress | bool = True,
    resume: str | Path | None = None,
    **settings: Any,
) -> Run:
    """`train`, on the caller's event loop. Cancelling it stops the run and leaves it resumable."""
    job = make_job(agent, tasks=tasks, **settings)
    return await train_job(job, progress=_progress(progress), resume=resume, stop=asyncio.Event())


def train_config(config: Config, *, resume: str | Path | None = None, progress: Progress | bool = True) -> Run:
    """`train`, with everything from a config (`agl train CONFIG.toml`)."""
    return run_job(job_of(config), resume=resume, progress=progress)


def run_job(job: Job, *, resume: str | Path | None = None, progress: Progress | bool = True) -> Run:
    """`train`, with everything in a job."""
    return run_in_thread(lambda stop: train_job(job, progress=_progress(progress), resume=resume, stop=stop))


def make_job(
    agent: Agent | str | None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    eval_tasks: Sequence[JSON] | str | Path | None = None,
    **settings: Any,
) -> Job:
    """A job from the arguments of `train`."""
    name = (
        agent if isinstance(agent, str) else f"{getattr(agent, '__module__', '?')}:{getattr(agent, '__qualname__', type(agent).__name__)}"
    )
    # Tasks that are no file are written into the run folder, so that `agl train --resume` finds them.
    files = {key: str(value) if isinstance(value, str | Path) else INLINE for key, value in (("tasks", tasks), ("eval_tasks", eval_tasks))}
    given = {"agent": agent, "tasks": tasks, "eval_tasks": eval_tasks}
    named = {key: value for key, value in {"agent": name, **files}.items() if given[key] is not None}
    config = build(Config, {"path": str(Path.cwd()), **named, **{key: _table(value) for key, value in settings.items()}})
    if config.replay is not None:
        config = dataclasses.replace(config, replay=config.replay.under(Path.cwd()))
    check_names(config)
    return Job(config, agent, [] if tasks is None else load_tasks(tasks), [] if eval_tasks is None else load_tasks(eval_tasks))


def job_of(config: Config) -> Job:
    """A job from a config alone."""
    agent: str | Agent | None = config.agent
    if config.command is not None:
        agent = CommandAgent(config.command, reward=config.reward, folder=config.path or ".")
    return Job(config, agent, load_tasks(config.tasks) if config.tasks else [], load_tasks(config.eval_tasks) if config.eval_tasks else [])


async def train_job(job: Job, *, progress: Progress, resume: str | Path | None, stop: asyncio.Event) -> Run:
    """Open everything, train, write the result."""
    config = job.config
    algorithm = algorithm_from(config.algorithm)
    demonstrate = algorithm.demonstrate
    planned = await plan(config, job.agent, progress=progress, algorithm=algorithm)
    if resume is None:
        await check_source(planned, algorithm, progress=progress, stop=stop)
    sampler = NoTasks() if config.replay is not None else registry().load("samplers", config.sampler)(job.tasks, config.seed)
    folder = RunFolder.open(resume) if resume is not None else RunFolder.create(config.folder, config.name)
    with folder.lock():
        state, restore = RunState(started=time.time(), sampler=sampler.state()), None
        if resume is not None and folder.steps():
            restore, state = folder.resume_point()
            sampler.restore(state.sampler)
        progress.begin(config.steps, state.step)
        if resume is not None:
            progress.message(f"going on after step {state.step}" if restore else f"{folder.name} has no checkpoint yet: it starts again")
        session: Session | None = None
        stopped = False
        try:
            async with (
                open_source(planned, algorithm, progress=progress, stop=stop, taken=folder.read_batches(state.step)) as source,
                open_stack(
                    planned,
                    store=folder.store_address,
                    weights=folder.weights,
                    progress=progress,
                    demonstrate=demonstrate,
                    restore=restore,
                ) as stack,
            ):
                assert stack.trainer is not None
                assert stack.weight_sync is not None
                # From here on the run is changed: everything that could be wrong with config and checkpoint has been seen.
                await _cancel_left_over(stack.store)
                folder.cut_back(state.step)
                cut_metrics(folder.path, after=_last_logged(state, restore is not None))
                config = keep_tasks(folder, config, job)
                folder.write_config(to_toml(config))
                folder.write_state(state)
                with Trackers(config.trackers, folder.path) as trackers:
                    session = Session(
                        config,
                        store=stack.store,
                        engine=stack.engine,
                        trainer=stack.trainer,
                        weight_sync=stack.weight_sync,
                        sampler=sampler,
                        tasks=job.tasks,
                        eval_tasks=job.eval_tasks,
                        folder=folder,
                        tracker=trackers,
                        progress=progress,
                        state=state,
                        stop=stop,
                        runners=stack.runners,
                        source=source,
                    )
                    try:
                        await session.begin()
                        await algorithm.run(session)
                        await session.abandon()
                        await session.checkpoint()
                    except (Stopped, asyncio.CancelledError):
                        stopped = True
                        await session.rescue()
                    except LightningError:
                        await session.rescue()
                        raise
        finally:
            progress.end()
            if session is not None:
                write_result(folder, config, session.state)
        return Run(folder.path, folder.read_result(), stopped)


def _last_logged(state: RunState, resumed: bool) -> int:
    """The last step whose line stays in the metrics: one that was stopped before its evaluation is logged after it."""
    if not resumed:
        return -1
    return state.step - ("row" in state.extra)


def keep_tasks(folder: RunFolder, config: Config, job: Job) -> Config:
    """Tasks that were given as values, as files of the run."""
    for key, tasks in (("tasks", job.tasks), ("eval_tasks", job.eval_tasks)):
        if getattr(config, key) == INLINE:
            path = folder.path / f"{key}.jsonl"
            write_file(path, b"".join(json.dumps(task.input).encode() + b"\n" for task in tasks))
            config = dataclasses.replace(config, **{key: str(path)})
    return config


async def _cancel_left_over(store: Any) -> None:
    """Rollouts of a step that a stopped run did not finish are made again."""
    left, _ = await store.list(status=["queued", "running"], limit=1_000_000)
    ids = [state.rollout.id for state in left if state.rollout.mode != "production"]
    if ids:
        await store.cancel(ids)


def write_result(folder: RunFolder, config: Config, state: RunState) -> None:
    """`result.json` and `reward.png` from what was measured; what was not measured is absent."""
    rows, _ = read_metrics(folder.path)
    eval_metrics: dict[str, dict[str, float]] = {}
    last_measured: int | None = None
    for kind in ("sampled", "greedy"):
        values = [(row["step"], row[f"eval.{kind}"]) for row in rows if f"eval.{kind}" in row]
        measured = {"before": values[0][1]} if values and values[0][0] == 0 else {}
        if values and values[-1][0] > 0:
            measured["after"] = values[-1][1]
            last_measured = values[-1][0]
        if measured:
            eval_metrics[kind] = measured
    steps = folder.steps()
    best = state.best_step if state.best_step in steps else None
    kept = best if best is not None else (steps[-1] if steps else None)
    result: dict[str, Any] = {
        "name": config.name,
        "model": config.model,
        "seed": config.seed,
        "steps": state.step,
        "finished": state.finished,
        "seconds": round(state.seconds, 1),
        "eval": eval_metrics,
    }
    if last_measured is not None:
        result["measured_after_step"] = last_measured
    if state.best is not None:
        result["best"] = {"step": state.best_step, "eval": state.best}
    if kept is not None:
        versions = {row["step"]: row["policy_version"] for row in rows if "policy_version" in row}
        result |= {"policy_step": kept, "policy_version": int(versions.get(kept, 0))}
        result["checkpoint"] = str(folder.checkpoint(kept).relative_to(folder.path))
    folder.write_result(result)
    reward_chart(rows, folder.chart, title=config.name)


def run_in_thread(main: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread with a loop of its own. The first Ctrl-C sets its event, the second cancels it."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    result: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def body() -> None:
        asyncio.set_event_loop(loop)
        tasks.append(loop.create_task(main(stop)))
        try:
            result.set_result(loop.run_until_complete(tasks[0]))
        except BaseException as error:
            result.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    threading.Thread(target=body, name="agentlightning", daemon=True).start()
    interrupts = 0
    while True:
        try:
            wait([result])  # not Thread.join: in Python 3.11 an interrupt in it takes a running thread for a stopped one
            return result.result()
        except KeyboardInterrupt:
            interrupts += 1
            if not result.done():
                loop.call_soon_threadsafe(stop.set if interrupts == 1 else tasks[0].cancel)
        except (CancelledError, asyncio.CancelledError, Stopped) as error:
            raise KeyboardInterrupt from error


def _table(value: Any) -> Any:
    """Settings objects as the tables that a config file would have; what stands at its default is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {each.name: each for each in dataclasses.fields(value)}
        table: dict[str, Any] = {}
        for key, each in named.items():
            given = getattr(value, key)
            if key == "name" or given != each.default:
                table[key] = False if given is None else _table(given)
        return table
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _table(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    return value


def _progress(progress: Progress | bool) -> Progress:
    if isinstance(progress, bool):
        return make_progress() if progress else Silent()
    return progress
