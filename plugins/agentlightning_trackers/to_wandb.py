"""Shows a run in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb
from requests.utils import get_netrc_auth

from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker
from agentlightning.types import JSON
from agentlightning_trackers.settings import PROJECT, WandbSettings
from agentlightning_trackers.tables import EVALUATION, ROLLOUTS, evaluation_rows, grouped, numbers, rollout_rows, texts


class WandbTracker(Tracker):
    """Its own run of wandb, beside one that the agent may have."""

    Settings = WandbSettings
    advice = "Check `wandb login` and the network, or set WANDB_MODE=offline."

    def __init__(self, run: Any) -> None:
        """`run`: of wandb."""
        self._run = run

    @classmethod
    def create(cls, run: TrackedRun, settings: WandbSettings) -> WandbTracker:
        offline = _needs_key()
        opened = wandb.init(
            project=settings.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=run.folder.name,
            group=run.name,
            dir=str(run.folder),
            config=dict(run.config),
            resume="allow",
            mode="offline" if offline else None,
            settings=wandb.Settings(console="off", silent=True, reinit="create_new"),
        )
        if offline:
            run.say(f"wandb has no API key, so it records offline. Upload with: wandb sync {run.folder / 'wandb'}/offline-run-*")
        return cls(opened)

    def log(self, metrics: Mapping[str, JSON]) -> None:
        step = int(metrics["step"])
        self._run.log({grouped(name): value for name, value in {**numbers(metrics), **texts(metrics)}.items()}, step=step)

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        self._run.log({"tables/evaluation": wandb.Table(columns=list(EVALUATION), data=evaluation_rows(step, tasks))}, step=step)

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        self._run.log({"tables/rollouts": wandb.Table(columns=list(ROLLOUTS), data=rollout_rows(step, rollouts))}, step=step)

    def close(self, end: RunEnd) -> None:
        self._run.finish(exit_code=int(end == "failed"))


def _needs_key() -> bool:
    """Whether wandb would upload the run and has no key for it."""
    settings: Any = wandb.setup().settings
    key = settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url)
    return settings.mode == "online" and not key
