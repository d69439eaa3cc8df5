"""The model card of an exported run: results, curves, data, settings, and licence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import tomli_w

from agentlightning.serving.model_origin import UNKNOWN, Origin
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.metrics import read_metrics
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.tracked_run import without_secrets

CHART = "reward.png"
OF_THIS_MACHINE = ("folder", "path", "host", "port", "address", "store", "otlp_endpoint", "trackers")
"""Settings that say nothing about the weights."""


def model_card(run: RunFolder, origin: Origin, policy: str | None = None) -> str:
    """Return the text of README.md, in the form of the Hugging Face hub. It names no path of this machine. `policy`: one of several."""
    result, rows, config = run.read_result(), read_metrics(run.path), run_config(run)
    name, step = str(result.get("name", run.name)), int(result.get("policy_step", 0))
    sections = [
        f"# {name}" if policy is None else f"# {name}: policy {policy}",
        _summary(origin, step, rows),
        "## Results",
        _results(rows, step),
        f"![Mean reward by training step]({CHART})" if run.chart.is_file() else "",
        str(result.get("policy_reason", "")),
        "## Data",
        _data(config, rows, step),
        "## Use",
        _usage(),
        "## Settings",
        f"```toml\n{tomli_w.dumps(card_settings(config)).strip()}\n```",
        "## Licence",
        _licence(origin),
    ]
    return f"---\n{_head(origin)}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _head(origin: Origin) -> str:
    """The facts that the hub reads."""
    from huggingface_hub import ModelCardData

    facts: Any = ModelCardData(
        license=origin.licence,
        base_model=origin.hub_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["agent-lightning", "reinforcement-learning", "agents"],
    )
    return str(facts.to_yaml()).strip()


def _summary(origin: Origin, step: int, rows: Sequence[Mapping[str, Any]]) -> str:
    tool = f"Agent Lightning {version('agentlightning')}"
    if step == 0:
        return f"These are the weights of {origin.name} as they were: no step of a training run with {tool} was better."
    tokens = sum(row.get("trained_tokens", 0) for row in rows if row["step"] <= step)
    return f"{origin.name}, trained inside an agent with {tool}: {step} step{'s' * (step != 1)}, {tokens:,} trained tokens."


def _results(rows: Sequence[Mapping[str, Any]], step: int) -> str:
    """A table of the mean rewards on the eval tasks, before training and of these weights."""
    by_step = {row["step"]: row for row in rows}
    before, now = by_step.get(0, {}), by_step.get(step, {})
    lines = ["| replies | before training | these weights | change, 95% interval |", "|---|---|---|---|"]
    for kind in KINDS:
        if now.get(f"eval.{kind}") is not None:
            interval = [now.get(f"eval.{kind}.{name}") for name in ("change", "change_low", "change_high")]
            unknown = "" if before.get(f"eval.{kind}") is None else "too few tasks changed"
            change = unknown if None in interval else "{:+.3f}, {:+.3f} to {:+.3f}".format(*interval)
            lines.append(f"| {kind} | {_number(before.get(f'eval.{kind}'))} | {_number(now[f'eval.{kind}'])} | {change} |")
    if len(lines) == 2:
        return "These weights were not evaluated."
    return "Mean reward on eval tasks, on which nothing was trained:\n\n" + "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _data(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], step: int) -> str:
    rollouts = sum(row.get("rollouts", 0) for row in rows if 0 < row["step"] <= step)
    replay: Any = config.get("replay")
    named = {"tasks": config.get("tasks"), "eval tasks": config.get("eval_tasks")}
    lines = [f"- {name}: `{_short(str(source))}`" for name, source in named.items() if source]
    lines += ["- tasks: those of recorded rollouts"] if replay else []
    agent = config.get("agent") or config.get("command")
    lines += [f"- agent: `{_short(str(agent))}`"] if agent else []
    return "\n".join([*lines, f"- rollouts in training: {rollouts:,}"])


def _usage() -> str:
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        "```\n\n"
        '`agl serve THIS_FOLDER` serves it as an OpenAI-compatible endpoint. `model = "THIS_FOLDER"` in a config file trains it further.'
    )


def card_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without secrets, and without paths of this machine."""
    table = {name: value for name, value in config.items() if name not in OF_THIS_MACHINE}
    return cast("dict[str, Any]", _without_paths(without_secrets(table)))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(inner) for name, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in cast("list[Any]", value)]
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    """A text with the last part alone of each absolute path."""
    if text.startswith("/") and Path(text).exists():
        return Path(text).name
    return re.sub(r"(?<![\w./])(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+", lambda match: Path(match[0]).name, text)


def _licence(origin: Origin) -> str:
    if origin.licence == UNKNOWN:
        return f"The licence of {origin.name} is unknown. Find it out before you share these weights: it applies to them too."
    return f"The licence of {origin.name} is `{origin.licence}`. It applies to these weights too."
