"""A learning rate from the number of trained parameters.

The rule is lr = 1.25e11 / parameters², at least 1e-6 and at most 1e-3, and ten times the rate of full training for LoRA. What it
rests on:

| trained parameters | lr | over the rule | what happened, or source |
|---|---|---|---|
| 35M (SmolLM2-135M, top:10) | 1.0e-4 to 1.3e-4 | 1.0 to 1.3 | this repository's demo and benchmarks learn |
| 89M (Qwen2.5-0.5B, top:6) | 3e-5, cosine | 1.9 | generated text-to-SQL, ten steps: greedy 0.45 to 0.80 on held-out tasks |
| 119M (Qwen2.5-0.5B, top:8) | 2.5e-6 | 0.3 | text-to-SQL: greedy 0.52 to 0.61 on held-out tasks |
| 119M (Qwen2.5-0.5B, top:8) | 1e-5 | 1.1 | text-to-SQL: greedy 0.53 to 0.48, and to 0.32 with other settings |
| 119M (Qwen2.5-0.5B, top:8) | 1.5e-5 | 1.7 | MuSiQue: greedy 0.09 to 0.19 |
| 119M (Qwen2.5-0.5B, top:8) | 2e-5 | 2.3 | GSM8K: sampled reward 0.13 to 0.14, greedy 0.26 to 0.11 on held-out tasks |
| 149M (Qwen2.5-0.5B, top:10) | 4e-5 | 7.1 | GSM8K, 64 rollouts a step: collapse within six steps |
| 1.5B to 7B, full | 1e-6 | 1.0 | Dr. GRPO (arXiv 2503.20783), DeepSeekMath (arXiv 2402.03300) |
| 32B, full | 1e-6 | 1.0 | DAPO (arXiv 2503.14476) |
| LoRA | 10 x full | 1.0 | LoRA Without Regret (Thinking Machines, 2025) |
| LoRA (SmolLM2-135M, rank 16) | 5e-4 | 7.2 | generated tasks, three seeds: text-to-SQL greedy 0.47 to 0.58, RAG 0.57 to 0.64 |

Adam moves every parameter by about lr in a step, so the outputs move more the more parameters move together.
"""

from __future__ import annotations

from typing import Any

from agentlightning.config.model_facts import ModelFacts, model_facts
from agentlightning.errors import ConfigError

RULE = 1.25e11
"""lr times the square of the trained parameters."""
LOWEST, HIGHEST = 1e-6, 1e-3
LORA = 10.0
"""LoRA's rate over that of full training."""
TOO_HIGH, TOO_LOW = 2.0, 50.0
"""Factors from the rule that deserve a warning. 2.3 times the rule harmed greedy replies. Small models can learn at 20 times less."""
TOO_HIGH_AT_LOWEST = 5.0
"""The same where the rule ends at its lowest rate: a published rate that learns, and no run is known that failed just above it."""
TOO_HIGH_LORA = 10.0
"""The same for LoRA: 7.2 times its rule taught a small model, and no run is known that failed just above it."""
SMALLEST = 10_000_000
"""Trained parameters below which there are no runs to learn the rule from."""


def trained_parameters(facts: ModelFacts, train: str) -> int | None:
    """Return the number of parameters that `trainer.train` moves (of the whole model for LoRA); None: not known."""
    if facts.parameters is None or not train.startswith("top:"):
        return facts.parameters
    if facts.layers is None or facts.hidden is None or facts.vocabulary is None:
        return None
    layers = facts.parameters - facts.vocabulary * facts.hidden  # less the embedding
    return layers * min(int(train.removeprefix("top:")), facts.layers) // facts.layers


def suggested_lr(parameters: int | None, *, lora: bool) -> float | None:
    """Return a learning rate for reinforcement learning; None: no rule is known."""
    if parameters is None or parameters < SMALLEST:
        return None
    lr = min(max(RULE / parameters**2, LOWEST), HIGHEST)
    return min(LORA * lr, HIGHEST) if lora else lr


def lr_of_model(path: str, settings: Any) -> float | None:
    """Return the suggestion for a model (folder or hub id) and a trainer's settings; None: no rule is known. Reads the model's files."""
    train = getattr(settings, "train", None)
    if not path or not isinstance(train, str) or not hasattr(settings, "lr"):
        return None
    try:
        return suggested_lr(trained_parameters(model_facts(path), train), lora=train == "lora")
    except ConfigError:  # the trainer says what is wrong with the model
        return None


def lr_warning(lr: float | None, suggested: float | None, *, lora: bool = False) -> str | None:
    """Return a warning if a learning rate is far from the suggested one."""
    if lr is None or suggested is None:
        return None
    if lr > suggested * (TOO_HIGH_LORA if lora else TOO_HIGH_AT_LOWEST if suggested == LOWEST else TOO_HIGH):
        return (
            f"trainer.lr = {lr:.1e} is {lr / suggested:.1f} times the suggested {suggested:.1e} for this model and these layers. "
            "Rates that high harmed greedy replies, or made runs collapse. Lower it."
        )
    if lr * TOO_LOW < suggested:
        return (
            f"trainer.lr = {lr:.1e} is {suggested / lr:.0f} times below the suggested {suggested:.1e} for this model and these layers. "
            "The run may need very many steps. Raise it."
        )
    return None
