"""The prompts of a run, for the agents of `agl serve`."""

from __future__ import annotations

from pathlib import Path

from agentlightning.config.models import run_result
from agentlightning.config.prompts import prompt_texts, run_prompts
from agentlightning.config.schema import Config


def served_prompts(run: Path, config: Config) -> dict[str, str]:
    """Return the prompts of a run by name: the best ones of its search, or those that its weights were trained with."""
    return run_prompts(run) if "prompts" in run_result(run) else prompt_texts(config.prompts)
