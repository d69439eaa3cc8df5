"""Agent Lightning: train your existing agent with reinforcement learning.

import agentlightning as agl

    async def solve(task: dict, llm: agl.LLM) -> float: ...

    run = agl.train(solve, tasks=tasks, model="smollm2-135m")

Names are loaded when they are first used, so that importing this package costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning.algorithms.dpo import DPO
    from agentlightning.algorithms.lightning import LightningRL
    from agentlightning.algorithms.rft import RFT
    from agentlightning.algorithms.sft import SFT
    from agentlightning.capture.attach import attach
    from agentlightning.capture.recorder import current, note, reward
    from agentlightning.config.schema import RunnerSettings
    from agentlightning.contracts.hookspecs import hookimpl
    from agentlightning.errors import LightningError
    from agentlightning.rl.loss import CISPO, PPOClip
    from agentlightning.runner.rollout import reward_later, rollout
    from agentlightning.training.run import Run
    from agentlightning.training.train import train, train_async
    from agentlightning.types import LLM, Rollout, Sampling, Span, Task, Trajectory, Transition

__version__ = "0.1.0"

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
    "attach",
    "current",
    "hookimpl",
    "note",
    "reward",
    "reward_later",
    "rollout",
    "train",
    "train_async",
]

_HOMES = {
    "algorithms.dpo": ["DPO"],
    "algorithms.lightning": ["LightningRL"],
    "algorithms.rft": ["RFT"],
    "algorithms.sft": ["SFT"],
    "capture.attach": ["attach"],
    "capture.recorder": ["current", "note", "reward"],
    "config.schema": ["RunnerSettings"],
    "contracts.hookspecs": ["hookimpl"],
    "errors": ["LightningError"],
    "rl.loss": ["CISPO", "PPOClip"],
    "runner.rollout": ["reward_later", "rollout"],
    "training.run": ["Run"],
    "training.train": ["train", "train_async"],
    "types": ["LLM", "Rollout", "Sampling", "Span", "Task", "Trajectory", "Transition"],
}

if not TYPE_CHECKING:  # to a type checker a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, _HOMES, also=["__version__"])
