"""The prompts that a run found so far, and what prompts and weights contributed in a run of two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.result import found_prompts
from agentlightning.training.run_state import RunState
from agentlightning.types import JSON


def search_of(state: RunState | None) -> dict[str, JSON] | None:
    """The best prompts of a search and its candidates, each with the texts that it changed. None: the run searches no prompts."""
    search = None if state is None else found_prompts(state)
    if search is None:
        return None
    candidates = cast("Sequence[Mapping[str, Any]]", search["candidates"])
    return {
        "best": [{"name": name, "text": text, "own": search["default"].get(name) == text} for name, text in search["best"].items()],
        "candidate": search["candidate"],
        "candidates": [_candidate(candidate, candidates) for candidate in candidates],
        **{name: search[name] for name in ("rollouts", "tokens", "rejected", "unscored")},
    }


def _candidate(candidate: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> dict[str, JSON]:
    parent = candidate["parents"][0] if candidate["parents"] else None
    before = cast("Mapping[str, str]", {} if parent is None else candidates[parent]["prompts"])
    changed = {name: text for name, text in candidate["prompts"].items() if before.get(name) != text}
    return {
        "parent": parent,
        "step": candidate["step"],
        "score": candidate["score"],
        "changed": [{"name": name, "version": candidate["versions"][name], "text": text} for name, text in changed.items()],
    }


def stages_of(result: Mapping[str, Any], run: str | None) -> dict[str, JSON] | None:
    """What each stage contributed on the eval tasks. `run`: the name of the run that found the prompts; None: it is not in this library."""
    stages = cast("Mapping[str, Any] | None", result.get("stages"))
    if stages is None:
        return None
    return {"title": stages["prompts_run"], "run": run, "kinds": {kind: stages[kind] for kind in KINDS if kind in stages}}
