"""The suggested learning rate, and the warning about one far from it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from rich.console import Console

import agentlightning as agl
from agentlightning.config.model_facts import ModelFacts
from agentlightning.config.schema import load_config
from agentlightning.training import learning_rate
from agentlightning.training.learning_rate import lr_warning, suggested_lr, trained_parameters
from agentlightning.training.progress import TrainingProgress

SMOL = ModelFacts("LlamaForCausalLM", "llama", 30, 576, 49152, 8192, 134_515_008, 4_884_480, "bfloat16", 0)
QWEN = ModelFacts("Qwen2ForCausalLM", "qwen2", 24, 896, 151936, 32768, 494_032_768, 8_798_208, "bfloat16", 0)
BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "agentlightning_benchmarks"


def rate(facts: ModelFacts, train: str) -> float:
    lr = suggested_lr(trained_parameters(facts, train), lora=train == "lora")
    assert lr is not None
    return lr


POINTS = [
    (SMOL, "top:10", 1.0e-4, False),  # this repository's benchmarks learn
    (SMOL, "top:10", 1.3e-4, False),  # this repository's demo learns
    (QWEN, "top:8", 2e-5, True),  # GSM8K: held-out greedy reward 0.258 to 0.108
    (QWEN, "top:10", 4e-5, True),  # GSM8K, 64 rollouts a step: reward 0.25 to 0 within six steps
    (QWEN, "full", 5.1e-6, True),
    (QWEN, "full", 4.9e-6, False),  # no run is known that failed here
    (QWEN, "full", 1e-6, False),  # the rate of the published recipes
    (replace(QWEN, parameters=1_500_000_000), "full", 1e-6, False),  # Dr. GRPO (arXiv 2503.20783)
    (replace(QWEN, parameters=7_000_000_000), "full", 1e-6, False),  # DeepSeekMath (arXiv 2402.03300)
    (replace(QWEN, parameters=32_000_000_000), "full", 1e-6, False),  # DAPO (arXiv 2503.14476)
    (replace(QWEN, parameters=7_000_000_000), "lora", 1e-5, False),  # LoRA Without Regret: ten times full training
    (SMOL, "lora", 5e-4, False),  # generated text-to-SQL: greedy 0.47 to 0.58
    (SMOL, "lora", 7e-4, True),
]
"""Model, trained layers, learning rate, and whether it did harm."""


@pytest.mark.parametrize(("facts", "train", "lr", "harmful"), POINTS)
def test_the_warning_tells_harmful_rates_from_those_that_learn(facts: ModelFacts, train: str, lr: float, harmful: bool) -> None:
    assert (lr_warning(lr, rate(facts, train), lora=train == "lora") is not None) == harmful


def test_the_rule_joins_the_points_that_it_names() -> None:
    assert rate(SMOL, "top:10") == pytest.approx(1.0e-4, rel=0.01)
    assert rate(QWEN, "top:8") == pytest.approx(8.8e-6, rel=0.01)
    assert rate(QWEN, "top:10") == pytest.approx(5.6e-6, rel=0.01)
    for parameters in (494_000_000, 3_000_000_000, 7_000_000_000, 32_000_000_000):
        assert suggested_lr(parameters, lora=False) == 1e-6
    assert suggested_lr(7_000_000_000, lora=True) == pytest.approx(1e-5)
    assert rate(SMOL, "top:99") == rate(SMOL, "top:30")


def test_a_tiny_or_unknown_model_has_no_suggestion() -> None:
    assert suggested_lr(9_999_999, lora=False) is None
    assert trained_parameters(replace(SMOL, parameters=None), "full") is None
    assert trained_parameters(replace(SMOL, layers=None), "top:10") is None
    assert lr_warning(1.0, None) is None
    assert lr_warning(None, 1e-5) is None


def test_a_rate_far_from_the_suggestion_is_a_warning_and_a_near_one_is_not() -> None:
    assert "6.0 times the suggested 1.0e-05" in str(lr_warning(6e-5, 1e-5))
    assert lr_warning(1.9e-5, 1e-5) is None
    assert lr_warning(2.1e-7, 1e-5) is None
    assert "100 times below the suggested 1.0e-05" in str(lr_warning(1e-7, 1e-5))


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_of_ours_is_silent(path: Path) -> None:
    config = load_config(path)
    algorithm = config.algorithm.get("then", config.algorithm)
    if algorithm["name"] == "lightning":
        facts = SMOL if config.model == "smollm2-135m" else QWEN
        train = config.trainer.get("train", "full")
        assert lr_warning(config.trainer["lr"], rate(facts, train), lora=train == "lora") is None


async def nothing(task: Any, llm: agl.LLM) -> float:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "a"}], max_tokens=2)
    return 0.0


@pytest.mark.parametrize("lr", [1e-3, 1e-5])
def test_a_run_warns_at_its_start(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float) -> None:
    monkeypatch.setattr(learning_rate, "SMALLEST", 1)
    monkeypatch.setattr(learning_rate, "HIGHEST", 1e-5)
    out = StringIO()
    agl.train(
        nothing, tasks=[{"text": "a"}], model=model, folder=tmp_path, steps=1, tasks_per_step=1, algorithm=agl.LightningRL(group_size=2),
        trainer={"name": "torch", "lr": lr}, progress=TrainingProgress(Console(file=out, width=1000)),
    )  # fmt: skip
    assert ("trainer.lr = 1.0e-03 is 100.0 times the suggested 1.0e-05" in out.getvalue()) == (lr == 1e-3)
