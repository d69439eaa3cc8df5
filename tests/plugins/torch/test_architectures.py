"""Architectures of every kind, tiny: exact in the trainer and the engine on both sides of their windows and original lengths.

`make test-architectures` checks all that transformers has.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, TrainerError, UnsupportedSetting
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.settings import TorchEngineSettings, TorchTrainerSettings
from agentlightning_torch.trainer import TorchTrainer

SCRIPTS = Path(__file__).parents[3] / "benchmarks" / "models"
SERVED = "served"
REFUSED = "refused"
EXPECTED = {
    "llama": ("forest", SERVED),
    "llama (rope dynamic)": ("forest", SERVED),
    "mistral": ("forest", SERVED),  # every layer has a window
    "gemma3_text": ("forest", SERVED),  # some layers have one
    "olmo3": ("forest", SERVED),
    "qwen2 (windows)": ("forest", SERVED),
    "phimoe": ("forest", SERVED),  # a window in its mask alone
    "phi3 (rope longrope)": ("forest", SERVED),
    "llama4_text": ("forest", SERVED),  # chunks
    "modernbert-decoder": ("forest", SERVED),
    "stablelm": ("forest", SERVED),  # hands no options to its attention
    "nemotron": ("forest", SERVED),
    "jetmoe": ("forest", SERVED),
    "gemma2": ("root-to-leaf rows", SERVED),  # soft caps
    "gpt_oss": ("root-to-leaf rows", SERVED),  # attention sinks
    "bloom": ("root-to-leaf rows", REFUSED),
    "mamba": ("root-to-leaf rows", REFUSED),
    "bert": ("forest", SERVED),
    "bert (encoder)": (REFUSED, REFUSED),
}
"""How the trainer computes an architecture, and whether the engine serves it."""


@pytest.fixture(scope="module")
def scripts() -> ModuleType:
    """`benchmarks/models/architectures.py`."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("architectures")
    finally:
        sys.path.remove(str(SCRIPTS))


def save(scripts: ModuleType, name: str, folder: Path) -> ModelFiles:
    scripts.tiny_model(name).save_pretrained(folder)
    return ModelFiles(name, str(folder))


@pytest.mark.parametrize("name", EXPECTED)
def test_an_architecture_is_exact_or_refused_by_name(scripts: ModuleType, name: str):
    outcome = scripts.check(name)
    if not (name == "nemotron" and outcome.engine == REFUSED):  # its attention cannot be replaced in older versions of transformers
        assert (outcome.trainer, outcome.engine) == EXPECTED[name], outcome
    assert not outcome.wrong, outcome
    assert bool(outcome.reason) == (outcome.trainer != "forest")
    assert bool(outcome.engine_reason) == (outcome.engine != SERVED)


def test_a_mask_that_depends_on_later_tokens_is_refused_or_trained_by_single_calls(scripts: ModuleType):
    outcome = scripts.check("doge")  # older versions of transformers let every token read later ones
    assert outcome.trainer in ("one row for each call", REFUSED)
    assert outcome.engine == REFUSED
    assert not outcome.wrong, outcome


async def test_an_encoder_is_refused_with_the_setting_that_makes_it_a_decoder(scripts: ModuleType, tmp_path: Path):
    files = save(scripts, "bert (encoder)", tmp_path)
    for part, settings in ((TorchTrainer, TorchTrainerSettings()), (TorchEngine, TorchEngineSettings())):
        with pytest.raises(UnsupportedSetting, match=r"reads the tokens that it should predict.*set is_decoder = true"):
            await part.create(files, settings, {})


async def test_rope_that_depends_on_the_exact_length_is_trained_up_to_its_context(scripts: ModuleType, tmp_path: Path):
    files = save(scripts, "llama (rope dynamic)", tmp_path)
    trainer = await TorchTrainer.create(files, TorchTrainerSettings(tokens_per_pack=60), {})
    assert trainer.capabilities.max_sequence_tokens == 24
    with pytest.raises(TrainerError, match="defined up to 24"):
        list(trainer.scoring.scores(trainer.weights.model, scripts._batch(60), 60))
    await trainer.close()


async def test_a_reply_keeps_its_rope_factors_and_ends_before_others_would_hold(scripts: ModuleType, tmp_path: Path):
    engine = await TorchEngine.create(save(scripts, "phi3 (rope longrope)", tmp_path), TorchEngineSettings(dtype="float32"), {})
    random = np.random.default_rng(0)
    lengths = {}
    for size in (5, 20, 23, 24, 30):
        prompt = random.integers(1, 60, size).tolist()
        ids, _ = await scripts._ask(engine, prompt, 0)
        lengths[size] = len(ids)
        # The next turn may lie beyond the switch. It copies nothing that was computed with other factors.
        await scripts._ask(engine, [*prompt, *ids, 7], 0)
    assert lengths == {5: 16, 20: 4, 23: 1, 24: 16, 30: 16}
    await engine.close()


async def test_a_refusal_of_the_engine_says_why_and_what_to_do(scripts: ModuleType, tmp_path: Path):
    with pytest.raises(
        UnsupportedSetting, match=r"cannot serve 'mamba' \(mamba\): only 0 of its 2 layers have attention.*Use another model"
    ):
        await TorchEngine.create(save(scripts, "mamba", tmp_path), TorchEngineSettings(), {})


async def test_weights_of_another_shape_than_the_configuration_are_refused(scripts: ModuleType, tmp_path: Path):
    files = save(scripts, "llama", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 32', '"intermediate_size": 40'))
    with pytest.raises(ConfigError, match=r"'llama' cannot be loaded"):
        await TorchTrainer.create(files, TorchTrainerSettings(), {})
