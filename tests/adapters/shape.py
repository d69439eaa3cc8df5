"""An attempt's spans as a text that a test can compare whole, and programs that run alone and many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from textwrap import dedent

from adapter_world import World

from agentlightning.types import Span

TOGETHER = 8
"""Rollouts at once."""


def shape(spans: Iterable[Span]) -> str:
    """One line a span, below its parent, in order of the starts. Spans that overlap come in the order of their text.

    An agent's line is its name, and `as NAME` if another name acts in it. `call @NAME` is a model call, and `tool(NAME) @AGENT` a tool.
    A handoff, an error, or a missing join stands at the end of the line.
    """
    spans = list(spans)
    ids = {span.id for span in spans}
    below: dict[str | None, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.started):
        assert span.parent_id is None or span.parent_id in ids, f"{span.name} hangs from a span that does not exist"
        below.setdefault(span.parent_id, []).append(span)
    return "\n".join(line for text in _texts(below, None) for line in text)


def _texts(below: dict[str | None, list[Span]], parent: str | None) -> list[list[str]]:
    """The lines of each child of a span."""
    texts: list[list[str]] = []
    overlapping: list[list[str]] = []
    latest = float("-inf")
    for span in below.get(parent, []):
        if span.started >= latest:
            texts += sorted(overlapping)
            overlapping = []
        latest = max(latest, span.ended or span.started)
        overlapping.append([_line(span), *(f"  {line}" for text in _texts(below, span.id) for line in text)])
    return texts + sorted(overlapping)


def _line(span: Span) -> str:
    if span.kind == "note":
        text = f"note: {span.name}"
    elif span.kind == "agent":
        text = span.name if span.agent == span.name else f"{span.name} as {span.agent}"
    else:
        text = f"{'call' if span.kind == 'llm' else f'tool({span.name})'} @{span.agent}"
    facts = [
        f"-> {span.attributes['handoff']}" if "handoff" in span.attributes else "",
        "failed" if "error" in span.attributes else "",
        "not joined" if span.kind == "llm" and span.call_id is None else "",
    ]
    return " ".join([text, *filter(None, facts)])


async def check_shape(
    world: World, run: Callable[[], Awaitable[object]], expected: str, agents: Sequence[str | None], *, without: str | None = None
) -> None:
    """Run a program alone, in eight tasks of one loop, and in eight threads: each time with the expected spans.

    `agents`: the agent of each call, in any order. `without`: spans to leave out, by a part of their name.
    """

    async def in_loop() -> None:
        await run()

    async def in_thread() -> None:
        await asyncio.to_thread(lambda: asyncio.run(in_loop()))

    async def rollout(number: int, program: Callable[[], Awaitable[None]]) -> None:
        async with world.rollout(number) as recorder:
            await program()
            await world.joined(recorder, len(agents))
        spans = [span for span in await world.spans(recorder) if without is None or without not in span.name]
        assert shape(spans) == dedent(expected).strip()
        learned = await world.trajectory(recorder)
        assert sorted(str(transition.agent) for transition in learned.transitions) == sorted(map(str, agents))
        assert not [line for line in learned.diagnostics if "not scored" not in line]

    await rollout(0, in_loop)
    await asyncio.gather(*(rollout(number, in_loop) for number in range(TOGETHER)))
    await asyncio.gather(*(rollout(number, in_thread) for number in range(TOGETHER)))
