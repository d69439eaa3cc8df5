"""A job: the config of a run, with its agent as an object and its tasks as values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agentlightning.config.models import model_path
from agentlightning.config.policies import absolute_weights
from agentlightning.config.prompts import prompts_under
from agentlightning.config.rewards import RewardTable
from agentlightning.config.schema import Config, build_config, check_names
from agentlightning.config.store_address import absolute_store, run_store
from agentlightning.config.tasks import load_tasks, task_line
from agentlightning.files import write_file
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.runner import Agent
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import JSON, Task

INLINE = "(given as values)"


@dataclass(frozen=True, slots=True)
class Job:
    """A config, with the agent as an object and the tasks as values."""

    config: Config
    agent: str | Agent | None
    tasks: list[Task] = field(repr=False)
    eval_tasks: list[Task] = field(repr=False)
    earlier_runs: str | None = None
    """A folder with runs whose evaluations may stand in for those of this run; None: `config.folder`."""


def make_job(
    agent: Agent | str | None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    eval_tasks: Sequence[JSON] | str | Path | None = None,
    **settings: Any,
) -> Job:
    """Return the job of `train`'s arguments."""
    arguments = {"agent": agent, "tasks": tasks, "eval_tasks": eval_tasks}
    names = {
        "agent": agent if isinstance(agent, str) else f"{getattr(agent, '__module__', '?')}:{_qualified_name(agent)}",
        # Tasks that are not a file go into the run folder, so that `agl train --resume` finds them.
        **{key: str(value) if isinstance(value, str | Path) else INLINE for key, value in (("tasks", tasks), ("eval_tasks", eval_tasks))},
    }
    named = {key: value for key, value in names.items() if arguments[key] is not None}
    config = build_config({"path": str(Path.cwd()), **named, **{key: _table(value) for key, value in settings.items()}})
    config = dataclasses.replace(config, model=model_path(config.model, Path.cwd()), folder=str(Path.cwd() / config.folder))
    config = dataclasses.replace(config, policies=absolute_weights(config.policies, Path.cwd()))
    if config.replay is not None:
        config = dataclasses.replace(config, replay=config.replay.under(Path.cwd()))
    if isinstance(config.reward, RewardTable):
        config = dataclasses.replace(config, reward=config.reward.under(Path.cwd()))
    if config.prompts:
        config = dataclasses.replace(config, prompts=prompts_under(config.prompts, Path.cwd()))
    if config.teacher is not None:
        config = dataclasses.replace(config, teacher=config.teacher.under(Path.cwd()))
    if config.store is not None:
        config = dataclasses.replace(config, store=absolute_store(config.store, Path.cwd()))
    check_names(config)
    return Job(config, agent, _loaded(tasks, config), _loaded(eval_tasks, config))


def job_of(config: Config) -> Job:
    """Return the job of a config alone."""
    agent: str | Agent | None = config.agent
    if config.command is not None and not config.runner.imports_agent:
        agent = config.command
    elif config.command is not None:
        agent = CommandAgent(config.command, reward=config.program_reward, folder=config.path or ".")
    return Job(config, agent, _loaded(config.tasks, config), _loaded(config.eval_tasks, config))


def _loaded(source: Sequence[JSON] | str | Path | None, config: Config) -> list[Task]:
    return [] if source is None else load_tasks(source, config.task_columns)


def with_store(job: Job, folder: RunFolder) -> Job:
    """Return the job with the address of the run's own store. A resumed run has it already."""
    if job.config.store is None:
        return job
    return dataclasses.replace(job, config=dataclasses.replace(job.config, store=run_store(job.config.store, folder.name)))


def keep_tasks(job: Job, folder: RunFolder) -> Job:
    """Write tasks that were passed as values into the run folder, and return the job whose config names those files."""
    config = job.config
    if INLINE not in (config.tasks, config.eval_tasks):
        return job
    renamed = bool(config.task_columns)
    config = dataclasses.replace(config, task_columns={})  # the files have the new names
    for key, tasks in (("tasks", job.tasks), ("eval_tasks", job.eval_tasks)):
        if getattr(config, key) == INLINE or (renamed and tasks):
            path = folder.path / f"{key}.jsonl"
            write_file(path, "".join(f"{task_line(task)}\n" for task in tasks).encode())
            config = dataclasses.replace(config, **{key: str(path)})
    return dataclasses.replace(job, config=config)


def not_held_out(job: Job) -> str | None:
    """Return a warning if eval tasks are training tasks, too; None: no task is both. Ids don't count."""
    trained = {_content(task) for task in job.tasks}
    shared = [task.id for task in job.eval_tasks if _content(task) in trained]
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(job.eval_tasks)} eval tasks are also training tasks (the first is {shared[0]!r}). They do not show what "
        "the agent does on new tasks. Remove them from one of the two."
    )


def _content(task: Task) -> str:
    content: Any = task.input
    if isinstance(content, dict):
        content = {key: value for key, value in cast("dict[str, JSON]", content).items() if key != "id"}
    return json.dumps(content, sort_keys=True)


def _table(value: Any) -> Any:
    """Settings objects as the tables of a config file, without the settings that are at their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table: dict[str, Any] = {}
        for setting in dataclasses.fields(value):
            current = getattr(value, setting.name)
            if setting.name == "name" or current != setting.default:
                table[setting.name] = False if current is None else _table(current)
        return table
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _table(entry) for key, entry in cast("Mapping[Any, Any]", value).items()}
    return value


def _qualified_name(agent: Any) -> str:
    return str(getattr(agent, "__qualname__", type(agent).__name__))
