"""Every hook that a plugin can implement.

A plugin is a module named by an entry point of the group `agentlightning`. It is light to import: what it registers is named as
`"module:attribute"` and imported when somebody asks for it by name.

    from agentlightning import hookimpl

    @hookimpl
    def register_advantages(register):
        register("median", "my_package.median:median")

Every `register` has the form of `Register`.
"""

from __future__ import annotations

from typing import Any, Protocol

import pluggy

from agentlightning.contracts.store import RolloutState
from agentlightning.types import Rollout

hookspec = pluggy.HookspecMarker("agentlightning")
hookimpl = pluggy.HookimplMarker("agentlightning")


class Register(Protocol):
    """Given to each `register_` hook."""

    def __call__(self, name: str, target: str | Any, *, summary: str = "", extra: str | None = None, needs: tuple[str, ...] = ()) -> None:
        """Register `target`, an object or `"module:attribute"`, under `name`.

        `summary` is one line for `agl plugins`. `extra` is what `pip install 'agentlightning[extra]'` adds, and `needs` the modules
        that it brings: where one is missing, asking for `name` says how to install it.
        """
        ...


@hookspec
def register_stores(register: Register) -> None:
    """Stores by the scheme of their address. Target: `open(address: str) -> LightningStore`."""


@hookspec
def register_engines(register: Register) -> None:
    """Engines. Target: a class with `Settings` (a frozen dataclass) and
    `async create(model: ModelFiles, settings: Settings, share: Share) -> Engine`. One that can share the trainer's weights has a setting
    `copy_weights`, which where it is None becomes whether rollouts go on while the trainer steps. With `remote = True` its model is no
    files of ours:
    `model.path` is empty, and training is refused."""


@hookspec
def register_trainers(register: Register) -> None:
    """Trainers. Target: a class with `Settings` (a frozen dataclass; its `total_steps`, if it has one that is None, becomes the run's) and
    `async create(model: ModelFiles, settings: Settings, share: Share) -> Trainer`, and `offers(settings) -> Capabilities`, which loads
    nothing."""


@hookspec
def register_adapters(register: Register) -> None:
    """Framework adapters. Target: `install(models=()) -> None`, which makes every agent of the framework recorded; idempotent. `models`:
    names or patterns of models that stand for the rollout's."""


@hookspec
def register_algorithms(register: Register) -> None:
    """Algorithms. Target: a frozen dataclass of settings with `async run(session: Session) -> None`
    (`agentlightning.algorithms.base`). It may also have `parts()`, which checks its settings and holds its `LossSettings`; `needs`, which
    says whether it compares rollouts of a task or needs a critic; and `demonstrate`, which answers the model calls of training
    rollouts."""


@hookspec
def register_credits(register: Register) -> None:
    """Credit assignment. Target: `credit(rollouts, **settings)`, which returns a float64 array (transitions,); NaN is no credit. `rollouts`
    is an `agentlightning.rl.arrays.RolloutArrays`. Mark a credit that reads `rollouts.values` with `agentlightning.rl.marks.uses_critic`: then
    the critic computes them first, and learns the returns of the credit."""


@hookspec
def register_advantages(register: Register) -> None:
    """Advantages. Target: `advantage(rollouts, returns, **settings)`, with the `returns` (transitions,) of credit. It returns a float64 array
    (transitions,) or (tokens,), or an `agentlightning.rl.advantage.Estimate`. An unmarked function is assumed to compare the rollouts of a
    group, so a run with groups of one refuses it. If yours compares none, mark it with `agentlightning.rl.marks.independent`."""


@hookspec
def register_losses(register: Register) -> None:
    """Losses. Target: a subclass of `LossSettings` that a trainer names in its `Capabilities`, a subclass of
    `agentlightning.contracts.loss.CustomLoss`, or a function `term(logprobs, old_logprobs, advantages, **settings)`, each (tokens,)."""


@hookspec
def register_corrections(register: Register) -> None:
    """Corrections between engine and trainer (`correction` of a loss). Target: a subclass of `agentlightning.rl.correction.Correction`."""


@hookspec
def register_filters(register: Register) -> None:
    """Which groups of rollouts are trained (`collection.filter`). Target: `keep(group, **settings) -> bool`, with the trajectories of one
    group."""


@hookspec
def register_step_signals(register: Register) -> None:
    """What can be observed of the steps of an attempt, for `step_rewards`. Target: `signal(records) -> iterable`, with the attempt's
    `agentlightning.contracts.store.AttemptRecords`; it gives the spans, calls or completions that show the signal."""


@hookspec
def register_samplers(register: Register) -> None:
    """Orders of tasks. Target: a class made with `(tasks, seed)` that has `next(count)`, `state()` and `restore(state)`; a curriculum also
    has `learn(task_id, rewards)`, which is told the rewards of each group of a finished step."""


@hookspec
def register_models(register: Register) -> None:
    """Models that can be fetched by name. Target: `fetch(folder: Path, progress) -> None`, which fills `folder` with files that
    `from_pretrained` loads."""


@hookspec
def register_renderers(register: Register) -> None:
    """Renderers for model families that the `renderers` library does not know. Target: a class made with `(tokenizer)` that has
    `fits(tokenizer) -> bool` (a static method) and the methods of `renderers.Renderer`."""


@hookspec
def register_trackers(register: Register) -> None:
    """Where metrics go. Target: a class made with `(folder: Path)` that has `log(metrics: dict)` and `close()`."""


@hookspec
def register_commands(register: Register) -> None:
    """Further commands of `agl`. Target: a function that typer can call, or a `typer.Typer`."""


@hookspec
def register_checks(register: Register) -> None:
    """Self-tests for `agl doctor`. Target: `check() -> str`, which tries something out in some seconds, in a process of its own, and says
    what it did; it raises what is wrong, and `ConfigError` or `MissingExtra` where there is nothing to try."""


@hookspec
def rollout_started(rollout: Rollout) -> None:
    """A runner has claimed a rollout and is about to run the agent."""


@hookspec
def rollout_finished(state: RolloutState) -> None:
    """An attempt at a rollout has ended, and everything that it wrote is in the store."""


@hookspec
def step_finished(metrics: dict[str, Any]) -> None:
    """A training step has ended; the metrics are those of `metrics.jsonl`."""
