"""The check of a config before anything opens: plugins are found, their settings are built, the agent is imported, the model is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from agentlightning.algorithms.base import Algorithm
from agentlightning.config.models import find_model
from agentlightning.config.parts import Part
from agentlightning.config.policies import with_own
from agentlightning.config.schema import Config, tracker_key
from agentlightning.config.toml import plain_settings
from agentlightning.contracts.engine import EngineSettings
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.contracts.trainer import TrainerSettings, check_capabilities
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.gateway.rendering.load import make_rendering
from agentlightning.registry.registry import load_object, registry
from agentlightning.rl.loss import SFTLoss
from agentlightning.runner.agent_call import Agent, takes_llm
from agentlightning.runner.proxies import reach_loopback
from agentlightning.runner.worker_pool import reference_of
from agentlightning.training.frozen_trainer import FrozenTrainer
from agentlightning.training.joint import JointAlgorithm, chosen_algorithm
from agentlightning.training.policies import Policies, check_policy_parts
from agentlightning.training.progress import Progress
from agentlightning.training.rewards.scoring import check_scorer
from agentlightning.training.teacher import TeacherPlan, check_teacher, plan_teacher
from agentlightning.training.trackers import ChosenTracker
from agentlightning.types import JSON

Plugin: TypeAlias = tuple[Any, Any]
"""Class and settings."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of a config for rollouts, checked and ready to open."""

    agent: str | Agent | None
    """The agent itself; its name, or its command line, if other processes run it; None: the run has no rollouts of its own."""
    files: ModelFiles
    engine: Plugin
    rendering: RenderingSettings
    policies: Policies
    """Of the run; none for a run with one policy."""


@dataclass(frozen=True, slots=True)
class TrainingPlan(Plan):
    """The parts of a config for training, checked and ready to open."""

    trainer: Plugin
    """Of several policies: that of the first trained one."""
    trainers: Mapping[str, Plugin]
    """By the name of the trained policy."""
    algorithm: Algorithm
    trackers: Sequence[ChosenTracker]
    teacher: TeacherPlan | None


async def plan_training(config: Config, agent: str | Agent | None, progress: Progress) -> TrainingPlan:
    """Check a config and its agent. Raises `ConfigError`, also for settings that the trainer does not honour.

    Imports the plugins' libraries and the agent, in a thread.
    """

    def check() -> TrainingPlan:
        trackers = chosen_trackers(config.trackers)
        algorithm = chosen_algorithm(config.algorithm, config.policies)
        reach_loopback()  # before the agent is imported, because its module may create a client
        engine = _engine(config)
        if not algorithm.trains_weights:
            return _without_weights(config, agent, engine, algorithm, trackers, progress)
        if engine[0].remote:
            raise UnsupportedSetting(
                f"The weights of engine {config.engine['name']!r} are on another server, and no trainer can change them. Use "
                "`agl rollout` or `agl serve` with it, or train a model of another engine."
            )
        engine = engine[0], _own_weights(str(config.engine["name"]), engine[1], config.collection.max_staleness)
        trainers = _trainers(config, algorithm)
        check_policy_parts(config.policies, str(config.engine["name"]), engine[0], str(config.trainer["name"]), trainers)
        check_scorer(config, algorithm.group_size)
        needs = algorithm.needs if config.replay is None else replace(algorithm.needs, answers=False)  # its rollouts have their answers
        teacher = plan_teacher(config.teacher, needs, config.sampling.temperature, progress.phase)
        checked, files = _agent(config, agent), _model(config.model, progress)
        check_teacher(teacher, files)
        rendering, trainer = _rendering(config, files), next(iter(trainers.values()))
        return TrainingPlan(checked, files, engine, rendering, config.policies, trainer, trainers, algorithm, trackers, teacher)

    return await asyncio.to_thread(check)


def _without_weights(
    config: Config, agent: str | Agent | None, engine: Plugin, algorithm: Algorithm, trackers: Sequence[ChosenTracker], progress: Progress
) -> TrainingPlan:
    """The plan of a run that trains no weights."""
    if config.replay is not None:
        raise ConfigError(f"Algorithm {config.algorithm['name']!r} needs rollouts with other prompts, but a replay's exist already.")
    if config.teacher is not None and not config.algorithm.get("then"):
        raise ConfigError(f"[teacher] is set, but algorithm {config.algorithm['name']!r} asks no teacher. Remove [teacher].")
    check_scorer(config, algorithm.group_size, searches=True)
    checked = _agent(config, agent)
    files = ModelFiles(config.model, "") if engine[0].remote else _model(config.model, progress)
    rendering = RenderingSettings() if engine[0].remote else _rendering(config, files)
    frozen = FrozenTrainer, TrainerSettings()
    return TrainingPlan(checked, files, engine, rendering, {}, frozen, {"main": frozen}, algorithm, trackers, None)


async def plan_rollouts(config: Config, agent: str | Agent, progress: Progress) -> Plan:
    """Check a config and its agent for rollouts without training. Raises `ConfigError`."""

    def check() -> Plan:
        reach_loopback()
        engine = _engine(config)
        check_scorer(config, 2)  # rollouts without training are scored one by one
        checked = _agent(config, agent)
        check_policy_parts(config.policies, str(config.engine["name"]), engine[0])
        if not engine[0].remote:
            files = _model(config.model, progress)
            return Plan(checked, files, engine, _rendering(config, files), config.policies)
        choices = config.rendering_choices.used()
        if choices:
            raise UnsupportedSetting(
                f"{choices[0]} has no effect: the server of engine {config.engine['name']!r} renders the messages. Remove it, or set it on "
                "that server."
            )
        return Plan(checked, ModelFiles(config.model, ""), engine, RenderingSettings(), {})

    return await asyncio.to_thread(check)


def _rendering(config: Config, files: ModelFiles) -> RenderingSettings:
    """The settings of the renderer, tried out before the weights load."""
    settings = config.rendering(files.path)
    make_rendering(files.name, files.path, settings)
    return settings


def _engine(config: Config) -> Plugin:
    engine, settings = _plugin("engines", config.engine, "engine")
    engine.check_settings(settings)
    return engine, settings


def _plugin(kind: str, table: Mapping[str, JSON], where: str) -> Plugin:
    part = Part.parse(kind, table, where)
    return part.target, part.make()


def chosen_trackers(tables: Sequence[JSON]) -> list[ChosenTracker]:
    """Return the trackers of a config. Raises `ConfigError` for wrong settings, and `MissingExtra` for a library that is missing."""
    parts = [Part.parse("trackers", table, tracker_key(table)) for table in tables]
    return [(str(part.name), part.target, part.make()) for part in parts]


def with_defaults(config: Config) -> Config:
    """The config of a run with every setting of its parts, so that its file shows the values in force and a resumed run keeps them. A part
    that only Python code can give stays as it is, and so do values that follow from other settings."""
    tables: dict[str, Any] = {}
    for key, kind in (("engine", "engines"), ("trainer", "trainers"), ("algorithm", "algorithms")):
        table = getattr(config, key)
        with contextlib.suppress(ConfigError):
            settings = plain_settings(Part.parse(kind, table, key).make(), none=False)
            tables[key] = {"name": table["name"], **{name: value for name, value in settings.items() if name != "name"}}
    return dataclasses.replace(config, **tables)


def config_in_force(config: Config, plan: TrainingPlan) -> dict[str, JSON]:
    """Return every setting of a run with the value in force, defaults included."""
    values = plain_settings(config, none=None)
    for key, settings in (("engine", plan.engine[1]), ("trainer", plan.trainer[1]), ("algorithm", plan.algorithm)):
        with contextlib.suppress(ConfigError):  # an object that only Python code can give: the table stays as it was written
            values[key] = {"name": getattr(config, key)["name"], **plain_settings(settings, none=None)}
    values["trackers"] = [{"name": name, **plain_settings(settings, none=None)} for name, _, settings in plan.trackers]
    return values


def _trainers(config: Config, algorithm: Algorithm) -> dict[str, Plugin]:
    """The trainer of each policy that is trained."""
    if not isinstance(algorithm, JointAlgorithm):
        return {"main": _trainer(config, config.trainer, algorithm)}
    tables = {name: with_own(config.trainer, config.policies[name].trainer) for name in algorithm.policies}
    return {name: _trainer(config, table, algorithm.policies[name]) for name, table in tables.items()}


def _trainer(config: Config, table: Mapping[str, JSON], algorithm: Algorithm) -> Plugin:
    """The trainer's class and settings. Raises `UnsupportedSetting` if it does not honour a setting of the algorithm."""
    trainer, settings = _plugin("trainers", table, "trainer")
    if settings.total_steps is None:
        settings = dataclasses.replace(settings, total_steps=config.steps)
    needs = algorithm.needs
    capabilities = trainer.offers(settings)
    check_capabilities(str(config.trainer["name"]), capabilities, algorithm.loss_settings(), critic=needs.critic)
    if needs.answers:
        check_capabilities(str(config.trainer["name"]), capabilities, SFTLoss(), critic=False)
    if capabilities.critic and not needs.critic:
        raise UnsupportedSetting(
            "trainer.critic = true has no effect: neither credit nor advantage uses a critic. "
            "Remove it, or set advantage = 'gae' or credit = 'learned'."
        )
    trainer.check_settings(settings)
    return trainer, settings


def _own_weights(name: str, settings: EngineSettings, max_staleness: int) -> EngineSettings:
    """The settings of an engine, with weights of its own if rollouts continue while the trainer steps."""
    if max_staleness and getattr(settings, "sleep", False):
        raise UnsupportedSetting(
            f"engine.sleep frees the GPU while the trainer steps, but with collection.max_staleness = {max_staleness} rollouts continue "
            "then. Remove one of them."
        )
    if settings.copy_weights is None:
        return dataclasses.replace(settings, copy_weights=max_staleness > 0)
    if max_staleness and not settings.copy_weights:
        if any(field.name == "copy_weights" for field in dataclasses.fields(settings)):
            raise UnsupportedSetting(
                f"engine.copy_weights = false does not fit collection.max_staleness = {max_staleness}: rollouts continue while the trainer "
                "changes the weights. Remove engine.copy_weights."
            )
        raise UnsupportedSetting(
            f"collection.max_staleness is {max_staleness}, but engine {name!r} serves the trainer's own weights, which change during a "
            "step. Set max_staleness = 0, or use engine 'torch'."
        )
    return settings


def _agent(config: Config, agent: str | Agent | None) -> str | Agent | None:
    if agent is None:
        return None
    config.runner.check_machine()
    if not config.runner.imports_agent:
        return reference_of(agent)
    if config.command is not None or not (config.runner.workers or config.runner.elsewhere):
        return _load_agent(agent, config.adapters, config.models)
    reference = reference_of(agent)
    _load_agent(reference, config.adapters, config.models)  # in this process too, so that a wrong name is an error now
    return reference


def _load_agent(agent: str | Agent, adapters: tuple[str, ...], models: tuple[str, ...]) -> Agent:
    """Install the adapters, then import and check the agent."""
    for adapter in adapters:
        registry().load("adapters", adapter)(models)
    if isinstance(agent, str):
        agent = load_object(agent)
    if not callable(agent):
        raise ConfigError(f"The agent {agent!r} is not a function. Define it as `async def solve(task, llm) -> float`, for example.")
    takes_llm(agent)
    return agent


def _model(name: str, progress: Progress) -> ModelFiles:
    progress.phase("finding model")
    return find_model(name, progress=progress.phase)
