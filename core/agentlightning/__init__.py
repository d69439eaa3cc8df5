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
    from agentlightning.algorithms.rft import RFT
    from agentlightning.algorithms.sft import SFT
    from agentlightning.errors import LightningError
    from agentlightning.hookspecs import hookimpl
    from agentlightning.model import LLM, Rollout, Sampling, Span, Task, Trajectory, Transition
    from agentlightning.recording import current, note, reward
    from agentlightning.rl.lightning import LightningRL
    from agentlightning.rl.loss import CISPO, PPOClip
    from agentlightning.rollouts import reward_later, rollout
    from agentlightning.runner import RunnerSettings
    from agentlightning.training import Run, train, train_async

__version__ = "0.1.0"

_HOME = {
    "CISPO": "rl.loss",
    "DPO": "algorithms.dpo",
    "LLM": "model",
    "LightningError": "errors",
    "LightningRL": "rl.lightning",
    "PPOClip": "rl.loss",
    "RFT": "algorithms.rft",
    "Rollout": "model",
    "Run": "training",
    "RunnerSettings": "runner",
    "SFT": "algorithms.sft",
    "Sampling": "model",
    "Span": "model",
    "Task": "model",
    "Trajectory": "model",
    "Transition": "model",
    "current": "recording",
    "hookimpl": "hookspecs",
    "note": "recording",
    "reward": "recording",
    "reward_later": "rollouts",
    "rollout": "rollouts",
    "train": "training",
    "train_async": "training",
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
