"""The verl trainer keeps the contract that every trainer keeps."""

from __future__ import annotations

import pytest
from verl_world import PYTHON

from agentlightning.contracts.model import ModelFiles
from agentlightning.testing.trainer_contract import TrainerContract
from agentlightning_torch.testing import tiny_model
from agentlightning_verl.settings import VerlSettings
from agentlightning_verl.trainer import VerlTrainer

pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="make test-verl: verl in an environment of its own"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


class TestVerlTrainer(TrainerContract):
    @pytest.fixture(autouse=True)
    def model(self, files: ModelFiles) -> None:
        self.files = files

    async def make(self) -> VerlTrainer:
        return await VerlTrainer.create(self.files, VerlSettings(python=PYTHON, lr=1e-3, device="cpu", tokens_per_pack=200), {})
