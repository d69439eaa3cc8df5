"""The prompts that a run found: its tree of candidates, and the held-out change of the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from agentlightning.training.choice import Choice
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.result import found_prompts
from agentlightning.training.run_folder import RunFolder


def print_prompts(run: RunFolder | None, console: Console) -> None:
    """Print the search of a run for prompts so far, or what the prompts of an earlier one and its own weights contributed."""
    if run is None:
        return
    result = run.read_result() if run.result.exists() else {}
    if "stages" in result:
        console.print(stages_table(cast("dict[str, Any]", result["stages"])))
    state = run.read_state() if run.state.exists() else None
    search = None if state is None else found_prompts(state)
    if state is None or search is None:
        return
    console.print(_tree(search))
    for kind, change in _held_out(state.choice).items():
        console.print(Text(f"held out, {kind}: {change}"), soft_wrap=True)
    for name, text in search["best"].items():
        same = " (the agent's own)" if search["default"].get(name) == text else ""
        console.print(Text.assemble((f"best {name}{same}:", "bold"), f"\n{text}"), soft_wrap=True, highlight=False)


def _held_out(choice: Choice | None) -> dict[str, str]:
    """The change on the eval tasks from before the search, in words, by kind of evaluation."""
    change = {} if choice is None else {kind: difference.interval for kind, difference in choice.change.items()}
    return {
        kind: f"{one.mean:+.3f} (95% interval {one.low:+.3f} to {one.high:+.3f})" for kind in KINDS if (one := change.get(kind)) is not None
    }


def stages_table(contributed: Mapping[str, Any]) -> Table:
    """Return `stages` of a `result.json` as a table: the changes on the eval tasks by prompts and by weights."""
    table = Table("held out", "before", "prompts", "95% interval", "weights", "95% interval", "after", box=None, pad_edge=False)
    for kind in KINDS:
        if (row := contributed.get(kind)) is not None:
            table.add_row(
                kind, f"{row['before']:.3f}", *_change(row, "prompts"), *_change(row, "weights"), _number(row.get("after_weights"))
            )
    return table


def _change(row: Mapping[str, Any], stage: str) -> tuple[str, str]:
    """The mean change of a stage, and its interval."""
    if stage not in row:
        return "", ""
    return f"{row[stage]['mean']:+.3f}", f"{row[stage]['low']:+.3f} to {row[stage]['high']:+.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _tree(search: Mapping[str, Any]) -> Tree:
    candidates: Sequence[Mapping[str, Any]] = search["candidates"]
    counts = f"{len(candidates) - 1} accepted, {search['rejected']} rejected, {search['rollouts']} rollouts, {search['tokens']:,} tokens"
    tree = Tree(Text(f"prompts: {counts}"))
    branches: dict[int, Tree] = {}
    for place, candidate in enumerate(candidates):
        above = branches[candidate["parents"][0]] if candidate["parents"] else tree
        branches[place] = above.add(_line(place, candidate, candidates, best=place == search["candidate"]))
    return tree


def _line(place: int, candidate: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], *, best: bool) -> Text:
    """One candidate: its score, and the prompts that it changed."""
    parent: dict[str, str] = {}
    for above in cast("list[int]", candidate["parents"])[:1]:
        parent = cast("dict[str, str]", candidates[above]["versions"])
    changed = [f"{name} {version}" for name, version in candidate["versions"].items() if parent.get(name) != version]
    where = f"step {candidate['step']}" if candidate["step"] else "the agent's own"
    text = f"{place}  {candidate['score']:.3f}  {where}, {', '.join(changed)}"
    return Text.assemble((text, "bold green" if best else ""), "  best" if best else "")
