"""One run, which every tracker that is installed here has shown."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tracked_world import Tracked, stopped_and_resumed

from agentlightning.registry.registry import registry
from agentlightning.training.metrics import read_metrics
from agentlightning_torch.testing import tiny_model

NAMES = ("mlflow", "tensorboard", "trackio", "wandb")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny").path


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No account, no setting of the user's, and no file outside the test's folders."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
            patch.delenv(name)
        for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR", "NETRC"):
            patch.setenv(name, str(home / name.lower()))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield


@pytest.fixture(scope="session")
def tracked(model: str, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    installed = [name for name in NAMES if not registry().entry("trackers", name).missing]
    folder, said = stopped_and_resumed(model, tmp_path_factory.mktemp("runs"), installed)
    return Tracked(folder, read_metrics(folder), said)
