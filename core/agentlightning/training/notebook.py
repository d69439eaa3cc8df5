"""Runs and rollouts as HTML for notebooks. Everything that a model or an agent wrote is escaped."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

from agentlightning.contracts.store import AttemptRecords
from agentlightning.rl.trajectory.joins import join
from agentlightning.stores.messages import RecordedMessages, new_messages
from agentlightning.training.attempt_tree import AttemptTree, Node
from agentlightning.training.chart import GREEDY, SAMPLED, TRAIN
from agentlightning.training.message_text import function_of, message_text
from agentlightning.training.recorded import RunRollout, finished_step, kind_of_rollout, task_text
from agentlightning.types import Call, Completion, Reward

TEXT_LIMIT = 4000
"""Characters of one text that are shown."""
WIDTH, HEIGHT, MARGIN = 640, 220, 36
CURVES = (("reward", "training, sampled", TRAIN), ("eval.sampled", "eval, sampled", SAMPLED), ("eval.greedy", "eval, greedy", GREEDY))
CELL, BLOCK = "text-align:left;padding:2px 14px 2px 0", "white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0"


# --- a run -------------------------------------------------------------------------------------------------------------------------


def run_html(folder: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A run: its evaluations before and after, its curves, and why it does not learn, if it does not."""
    state = "finished" if result.get("finished") else "stopped"
    facts = (
        f"{result.get('model')}, {result.get('steps')} step{'s' * (result.get('steps') != 1)}, {result.get('seconds', 0):.0f} s, {state}"
    )
    rewards = cast("dict[str, dict[str, float]]", result.get("eval") or {})
    table = [(f"eval, {kind}", *(_number(values.get(name)) for name in ("before", "after"))) for kind, values in rewards.items()]
    diagnosis = cast("dict[str, Any]", result.get("diagnosis") or {}).get("text")
    return _tag(
        "div",
        _tag("b", escape(folder.name)) + _tag("div", escape(facts)),
        _table(("", "before", "after"), table) if table else "",
        curves_svg(rows),
        _tag("p", escape(str(diagnosis))) if diagnosis else "",
    )


def curves_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean rewards by step, as a picture; empty without any."""
    series = [(label, colour, _points(rows, name)) for name, label, colour in CURVES]
    series = [(label, colour, points) for label, colour, points in series if points]
    if not series:
        return ""
    steps, rewards = zip(*(point for _, _, points in series for point in points), strict=True)
    low, high = min(0.0, *rewards), max(1.0, *rewards)
    scale_x, scale_y = (WIDTH - 2 * MARGIN) / max(1, max(steps)), (HEIGHT - 2 * MARGIN) / (high - low)

    def place(step: float, reward: float) -> str:
        return f"{MARGIN + step * scale_x:.1f},{HEIGHT - MARGIN - (reward - low) * scale_y:.1f}"

    parts = [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{place(0, value).split(",")[1]}" y2="{place(0, value).split(",")[1]}" '
        f'stroke="currentColor" stroke-opacity="0.2"/>{_label(4, place(0, value).split(",")[1], f"{value:g}")}'
        for value in (low, high)
    ]
    parts.append(_label(WIDTH - MARGIN, HEIGHT - 12, f"step {max(steps)}", "end"))
    for number, (label, colour, points) in enumerate(series):
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(place(*point) for point in points)}"/>')
        for step, reward in points:
            x, y = place(step, reward).split(",")
            title = f"<title>{escape(label)}, step {step}: {reward:.3f}</title>"
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}">{title}</circle>')
        parts.append(_label(MARGIN + number * 190, 14, f"● {label}", colour=colour))
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="mean reward by step">'
    return f"{head}{''.join(parts)}</svg>"


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _label(x: float, y: object, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x}" y="{y}" font-size="11" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


# --- a rollout ---------------------------------------------------------------------------------------------------------------------


def rollout_html(recorded: RunRollout) -> str:
    """A rollout as a tree: agents over tools and model calls, with messages, replies, and rewards."""
    rollout, step = recorded.state.rollout, finished_step(recorded.state.rollout)
    facts = [
        ("task", task_text(rollout.task)),
        ("mode", kind_of_rollout(rollout) + ("" if step is None else f", step {step}")),
        ("status", recorded.state.status),
        ("reward", _number(recorded.reward) or "not scored"),
    ]
    notes = [recorded.problem] if recorded.problem else list(recorded.trajectory.diagnostics if recorded.trajectory else ())
    attempts = [_AttemptHtml(recorded, records).html() for records in recorded.attempts]
    return _tag(
        "div", _tag("b", f"rollout {escape(rollout.id)}"), _table((), facts), *attempts, *(_tag("p", escape(note)) for note in notes)
    )


class _AttemptHtml:
    """Writes one attempt."""

    def __init__(self, recorded: RunRollout, records: AttemptRecords) -> None:
        self._records, self._messages = records, RecordedMessages(records)
        self._replies = defaultdict[str, list[Completion]](list)
        for completion in records.completions:
            self._replies[completion.call_id].append(completion)
        self._rewards = defaultdict[str | None, list[Reward]](list)
        for reward in records.rewards:
            self._rewards[reward.span_id or reward.call_id].append(reward)
        self._advantages = _advantages(recorded)

    def html(self) -> str:
        attempt, tree = self._records.attempt, AttemptTree.of(self._records, join(self._records.calls, self._records.spans))
        head = f"attempt {attempt.number}: {attempt.status.replace('_', ' ')}{self._scored(None)}"
        error = _block(attempt.error) if attempt.error else ""
        inner = [*map(self._node, tree.roots), *map(self._call, tree.calls)]
        return _details(head, error, *inner)

    def _node(self, node: Node) -> str:
        children = [self._node(child) for child in node.children]
        if node.call is not None:
            return self._call(node.call, node.span.agent, node.span.id) + "".join(children)
        span = node.span
        content = _block(json.dumps(span.attributes, ensure_ascii=False, default=str)) if span.attributes else ""
        return _details(f"{span.kind} {span.name}{self._scored(span.id)}", content, *children)

    def _call(self, call: Call, agent: str | None = None, span_id: str | None = None) -> str:
        replies = self._replies[call.id]
        tokens = sum(len(reply.response_ids) for reply in replies)
        by = f" by {agent}" if agent else ""
        head = f"model call {call.index}{by}: {call.status}, {tokens} tokens{self._scored(call.id, span_id)}"
        tools = [str(function_of(tool).get("name")) for tool in self._messages.tools(call.id) or ()]
        parts = [_tag("div", escape(f"tools: {', '.join(tools)}"))] if tools else []
        parts += [_block(call.detail)] if call.detail else []
        quoted = len(self._messages.of(call.id) or ()) - len(new_messages(call) or ())
        parts += [_tag("i", f"{quoted} earlier message{'s' * (quoted > 1)}")] if quoted else []
        parts += [_message(message) for message in new_messages(call) or ()]
        for reply in replies:
            advantage = self._advantages.get(reply.id)
            note = "" if advantage is None else f" (advantage {advantage:+.3f})"
            parts.append(_message(reply.message, f"reply{note}"))
        return _details(head, *parts)

    def _scored(self, *keys: str | None) -> str:
        return "".join(f", {reward.name} {reward.value:g}" for key in dict.fromkeys(keys) for reward in self._rewards.get(key, ()))


def _advantages(recorded: RunRollout) -> dict[str, float]:
    """The advantage of each trained reply, by its id."""
    learned, trajectory = recorded.learned, recorded.trajectory
    if learned is None or trajectory is None:
        return {}
    pairs = zip(trajectory.transitions, learned.advantages, strict=False)
    return {transition.completion_id: advantage for transition, advantage in pairs if advantage is not None}


def _message(message: Any, name: str | None = None) -> str:
    role = cast("dict[str, Any]", message).get("role") if isinstance(message, dict) else None
    return _tag("div", _tag("b", escape(name or str(role))), _block(message_text(message)))


# --- HTML --------------------------------------------------------------------------------------------------------------------------


def _tag(name: str, *content: str) -> str:
    return f"<{name}>{''.join(content)}</{name}>"


def _details(head: str, *content: str) -> str:
    return f'<details open style="margin-left:1em"><summary>{escape(head)}</summary>{"".join(content)}</details>'


def _block(text: str | None) -> str:
    full = text or ""
    shown = full if len(full) <= TEXT_LIMIT else f"{full[:TEXT_LIMIT]} … ({len(full) - TEXT_LIMIT:,} more characters)"
    return f'<div style="{BLOCK}">{escape(shown)}</div>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return _tag("tr", *(f'<{tag} style="{CELL}">{escape(cell)}</{tag}>' for cell in cells))

    return _tag("table", line("th", headings) if headings else "", *(line("td", row) for row in rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
