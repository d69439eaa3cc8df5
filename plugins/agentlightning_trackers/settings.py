"""The settings of the trackers, light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentlightning.contracts.tracker import TrackerSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import NonNegativeInt

PROJECT = "agentlightning"
"""Where a tracker puts runs if neither the settings nor its environment name a project."""


@dataclass(frozen=True, kw_only=True)
class ShownRollouts(TrackerSettings):
    """Settings of every tracker that shows rollouts."""

    rollouts: NonNegativeInt = 4
    """Training rollouts to show after each step, with their messages and reward; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class WandbSettings(ShownRollouts):
    """Weights & Biases. Its environment variables work too: `WANDB_API_KEY`, `WANDB_ENTITY`, `WANDB_MODE`, `WANDB_BASE_URL`, ..."""

    project: str | None = None
    """The project. Absent: `WANDB_PROJECT`, else `agentlightning`."""


@dataclass(frozen=True, kw_only=True)
class TensorBoardSettings(ShownRollouts):
    """TensorBoard event files."""

    folder: str | None = None
    """Folder for the event files of all runs, relative to the folder of run folders. Absent: `tensorboard` in each run folder."""


@dataclass(frozen=True, kw_only=True)
class MLflowSettings(ShownRollouts):
    """MLflow. Its environment variables work too: `MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_TOKEN`, ..."""

    tracking_uri: str | None = None
    """Address of the server or the database. Absent: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the folder of run folders."""
    experiment: str | None = None
    """The experiment. Absent: `MLFLOW_EXPERIMENT_NAME`, else `agentlightning`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tracking_uri is not None and re.search(r"://[^/@]*:[^/]*@", self.tracking_uri):
            raise ConfigError(
                "trackers.mlflow.tracking_uri has a password in it, and the run folder keeps its settings. Remove it and set "
                "MLFLOW_TRACKING_URI instead."
            )


@dataclass(frozen=True, kw_only=True)
class TrackioSettings(ShownRollouts):
    """Trackio."""

    project: str | None = None
    """The project. Absent: `agentlightning`."""
