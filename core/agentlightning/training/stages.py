"""A run in two stages: first the prompts, then the weights with the best prompts. Each stage is a run with a folder of its own.

The folder of the first names the second in `then.json`, so that the first can be resumed at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from agentlightning.errors import ConfigError
from agentlightning.files import write_file
from agentlightning.training.choice import Evaluation, differences
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.job import Job
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.types import JSON

THEN = "then.json"


def weights_job(job: Job, prompts: Path | None = None) -> Job | None:
    """Return the job of the second stage; None: the run has one stage. `prompts`: the run of the first stage; None: only to check it."""
    then: Any = job.config.algorithm.get("then")
    if not then:
        return None
    if job.config.store is not None and not job.config.store.startswith("postgres"):
        raise ConfigError(
            f"store is {job.config.store!r}, but each stage of the algorithm is a run with a store of its own. Remove store, or name a "
            "PostgreSQL database."
        )
    algorithm = cast("dict[str, JSON]", then)
    config = replace(job.config, algorithm=algorithm, name=f"{job.config.name}-weights")
    return replace(job, config=replace(config, prompts=str(prompts)) if prompts is not None else config)


def second_folder(first: RunFolder) -> Path | None:
    """Return the folder of the second stage; None: it has not begun."""
    file = first.path / THEN
    if not file.is_file():
        return None
    folder = first.path.parent / str(json.loads(file.read_text())["run"])
    return folder if folder.is_dir() else None


def keep_second(first: RunFolder, second: RunFolder) -> None:
    """Name the folder of the second stage in that of the first."""
    write_file(first.path / THEN, json.dumps({"run": second.name}).encode() + b"\n")


def stages(first: RunState, second: RunState, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what prompts and weights contributed on the eval tasks, by kind: means, and paired changes with intervals.

    `first`: the state of the search. `second` and `result`: of the run that trained the weights. Empty without evaluations.
    """
    before, between = first.first, second.first
    if before is None or between is None:
        return {}
    by_prompts = differences(before, between)
    by_weights = {} if second.choice is None else second.choice.change
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        if kind not in by_prompts:
            continue
        after: Any = result["eval"].get(kind, {}).get("after")
        kinds[kind] = {
            "before": _mean(before, kind),
            "after_prompts": _mean(between, kind),
            "prompts": asdict(by_prompts[kind].interval),
            **({} if after is None else {"after_weights": after}),
            **({"weights": asdict(by_weights[kind].interval)} if kind in by_weights else {}),
        }
    return kinds


def _mean(evaluation: Evaluation, kind: str) -> float:
    rewards = evaluation.rewards[kind].values()
    return sum(rewards) / len(rewards)
