"""Every hook that a plugin can implement.

A plugin is a module, and an entry point of the group `agentlightning` names it. Keep it light to import: register parts as
`"module:attribute"`, and the registry imports them when somebody asks for their name.

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
    """The argument of each `register_` hook."""

    def __call__(
        self,
        name: str,
        target: str | Any,
        *,
        summary: str = "",
        extra: str | None = None,
        needs: tuple[str, ...] = (),
        settings: str | type[Any] | None = None,
        elsewhere: tuple[str, ...] = (),
    ) -> None:
        """Register `target`, an object or `"module:attribute"`, under `name`.

        `summary` is one line for `agl plugins`. `extra` is for `pip install 'agentlightning[extra]'`, and `needs`
        the modules that they bring. Where a module is missing, asking for `name` says how to install it. `settings` is the settings class
        of an engine, a trainer or a tracker, light to import: `agl config --schema` reads it. `elsewhere` lists modules that another
        environment may hold; if this one lacks them, `agl plugins` refers to `agl doctor`.
        """
        ...


@hookspec
def register_stores(register: Register) -> None:
    """Stores, by the scheme of their address. Target: `open(address: str) -> LightningStore`."""


@hookspec
def register_engines(register: Register) -> None:
    """Engines. Target: a subclass of `agentlightning.contracts.engine.Engine` with `create`. Its `Settings` are the keys of `[engine]`.

    An engine that answers whole requests instead of token ids derives from `agentlightning.gateway.call.Forwarder`. Its `answerers` and
    `disconnect` replace the gateway's own endpoints.
    """


@hookspec
def register_trainers(register: Register) -> None:
    """Trainers. Target: a subclass of `agentlightning.contracts.trainer.Trainer` with `create`. Its `Settings` are the keys of
    `[trainer]`."""


@hookspec
def register_runners(register: Register) -> None:
    """Where runners run, by `name` in `[runner]`. Target: `run(arguments, settings)`, a coroutine function that keeps
    `agentlightning.runner.remote.run_remote(arguments)` running in other processes until it is cancelled. Its `settings` derive from
    `agentlightning.config.schema.RunnerSettings`."""


@hookspec
def register_adapters(register: Register) -> None:
    """Framework adapters. Target: `install(models=()) -> None` of an `agentlightning.contracts.adapter.Adapter`."""


@hookspec
def register_algorithms(register: Register) -> None:
    """Algorithms. Target: a subclass of `agentlightning.algorithms.base.Algorithm`, a frozen dataclass. Its fields are the keys of
    `[algorithm]`."""


@hookspec
def register_credits(register: Register) -> None:
    """Credit assignment. Target: `credit(rollouts, **settings)`, which returns a float64 array (transitions,); NaN is no credit. `rollouts`
    is an `agentlightning.rl.arrays.RolloutArrays`. Mark a credit that reads `rollouts.values` with
    `agentlightning.rl.marks.uses_critic`: the run then asks the critic first, and the critic learns the returns."""


@hookspec
def register_advantages(register: Register) -> None:
    """Advantages. Target: `advantage(rollouts, returns, **settings)`, with the `returns` (transitions,) of credit. It returns a float64
    array (transitions,) or (tokens,), or an `agentlightning.rl.advantage.Estimate`. An unmarked function is assumed to compare the
    rollouts of a group, so a run with groups of one refuses it. If yours compares none, mark it with
    `agentlightning.rl.marks.independent`."""


@hookspec
def register_losses(register: Register) -> None:
    """Losses. Target: a subclass of `LossSettings` that a trainer names in its `Capabilities`, a subclass of
    `agentlightning.contracts.loss.CustomLoss`, or a function `term(logprobs, old_logprobs, advantages, **settings)`, each (tokens,)."""


@hookspec
def register_corrections(register: Register) -> None:
    """Corrections between engine and trainer (`correction` of a loss). Target: a subclass of `agentlightning.rl.correction.Correction`."""


@hookspec
def register_filters(register: Register) -> None:
    """Filters of groups (`collection.filter`). Target: `keep(group, **settings) -> bool`; `group` is the trajectories of one group."""


@hookspec
def register_step_signals(register: Register) -> None:
    """Step signals, for `step_rewards`. Target: `signal(records) -> iterable` of the spans, calls or completions that show the signal.
    `records` is the `agentlightning.contracts.store.AttemptRecords` of one attempt."""


@hookspec
def register_samplers(register: Register) -> None:
    """Orders of tasks. Target: a subclass of `agentlightning.config.samplers.Sampler`."""


@hookspec
def register_models(register: Register) -> None:
    """Models to download by name. Target: `fetch(folder: Path, progress) -> None`, which fills `folder` with files that `from_pretrained`
    loads."""


@hookspec
def register_converters(register: Register) -> None:
    """Conversions of models to folders that `from_pretrained` loads. Targets: `gguf` is `convert(file, folder, *, weights)`, `lora` is
    `merge(adapter, base, folder, *, weights)`. Without `weights` they write only configuration and tokenizer. `shapes` is
    `shapes(config) -> {name: shape}`, of a model's parameters."""


@hookspec
def register_renderers(register: Register) -> None:
    """Renderers for models whose chat template does not say how the model writes. Target: a subclass of
    `agentlightning.gateway.rendering.renderer.Renderer` that is called with `(tokens, settings)`. A static method
    `fits(tokenizer) -> bool` lets `renderer = "auto"` choose it."""


@hookspec
def register_trackers(register: Register) -> None:
    """Trackers, which show a run outside its folder. Target: a subclass of `agentlightning.contracts.tracker.Tracker`. Its `Settings` are
    the keys of the tracker's table. An error in one is a warning, once in a run."""


@hookspec
def register_commands(register: Register) -> None:
    """Commands of `agl`. Target: a function that typer can call, or a `typer.Typer`."""


@hookspec
def register_benchmarks(register: Register) -> None:
    """Benchmarks for `agl bench NAME`. Target: an `agentlightning_benchmarks.bench.benchmark.Benchmark`, which names the folder of its
    presets and reads real tasks."""


@hookspec
def register_checks(register: Register) -> None:
    """Self-tests for `agl doctor`. Target: `check() -> str`, which tries something out in a few seconds and returns a sentence about it. It
    runs in a process of its own. It raises an error for a fault, and `ConfigError` or `MissingExtra` when there is nothing to try."""


@hookspec
def rollout_started(rollout: Rollout) -> None:
    """Called when a runner has claimed a rollout, before it runs the agent."""


@hookspec
def rollout_finished(state: RolloutState) -> None:
    """Called when an attempt at a rollout has ended, and all its records are in the store."""


@hookspec
def step_finished(metrics: dict[str, Any]) -> None:
    """Called after a training step, with its row of `metrics.jsonl`."""
