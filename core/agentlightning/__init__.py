"""Agent Lightning: agents that already exist learn by reinforcement, without being rewritten.

import agentlightning as agl

    async def solve(task: dict, llm: agl.LLM) -> float: ...

    run = agl.train(solve, tasks=tasks, model="smollm2-135m")

Names are loaded when they are first used, so that importing this package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.algorithms.dpo import DPO
    from agentlightning.algorithms.lightning import LightningRL
    from agentlightning.algorithms.rft import RFT
    from agentlightning.algorithms.sft import SFT
    from agentlightning.capture.recorder import current, note, reward
    from agentlightning.config.schema import RunnerSettings
    from agentlightning.contracts.hookspecs import hookimpl
    from agentlightning.errors import LightningError
    from agentlightning.rl.loss import CISPO, PPOClip
    from agentlightning.runner.rollout import reward_later, rollout
    from agentlightning.training.train import Run, train, train_async
    from agentlightning.types import LLM, Rollout, Sampling, Span, Task, Trajectory, Transition

__version__ = "0.1.0"

_HOME = {
    "CISPO": "rl.loss",
    "DPO": "algorithms.dpo",
    "LLM": "types",
    "LightningError": "errors",
    "LightningRL": "algorithms.lightning",
    "PPOClip": "rl.loss",
    "RFT": "algorithms.rft",
    "Rollout": "types",
    "Run": "training.train",
    "RunnerSettings": "config.schema",
    "SFT": "algorithms.sft",
    "Sampling": "types",
    "Span": "types",
    "Task": "types",
    "Trajectory": "types",
    "Transition": "types",
    "current": "capture.recorder",
    "hookimpl": "contracts.hookspecs",
    "note": "capture.recorder",
    "reward": "capture.recorder",
    "reward_later": "runner.rollout",
    "rollout": "runner.rollout",
    "train": "training.train",
    "train_async": "training.train",
}

__all__ = [
    "CISPO",
    "DPO",
    "LLM",
    "RFT",
    "SFT",
    "LightningError",
    "LightningRL",
    "PPOClip",
    "Rollout",
    "Run",
    "RunnerSettings",
    "Sampling",
    "Span",
    "Task",
    "Trajectory",
    "Transition",
    "current",
    "hookimpl",
    "note",
    "reward",
    "reward_later",
    "rollout",
    "train",
    "train_async",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'agentlightning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agentlightning.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
