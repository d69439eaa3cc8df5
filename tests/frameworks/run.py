"""Runs the program of one framework, in the environment of that framework, and writes what was recorded as JSON.

ENVIRONMENT/bin/python tests/frameworks/run.py pydantic-ai result.json
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import script

from agentlightning.registry.registry import registry
from agentlightning.rl.trajectory.joins import join
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.testing.world import World, open_world, problems
from agentlightning.types import Call, Span
from frameworks import FRAMEWORKS


def lines(spans: Sequence[Span], calls: Sequence[Call]) -> list[str]:
    """The spans as an indented tree, in order of their start. A model call that is joined says so."""
    joined = {span.id for spans in join(calls, spans).spans.values() for span in spans}
    ids = {span.id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.started):
        children.setdefault(span.parent_id if span.parent_id in ids else None, []).append(span)

    def below(parent: str | None, depth: int) -> list[str]:
        shown: list[str] = []
        for span in children.get(parent, []):
            name = ("call" if span.id in joined else "unjoined call") if span.kind == "llm" else f"{span.kind} {span.name}"
            shown += ["  " * depth + name, *below(span.id, depth + 1)]
        return shown

    return below(None, 0)


async def one(world: World, program: Any, number: int, stream: bool) -> dict[str, Any]:
    """One rollout, and what it recorded."""
    async with world.rollout(number) as recorder:
        answer = await program.run(recorder.llm, f"Solve {number}.", stream=stream)
    records = await world.records(recorder)
    learned = await world.trajectory(recorder)
    return {
        "answer": answer,
        "calls": [(call.status, call.detail) for call in records.calls],
        "tree": lines(records.spans, records.calls),
        "agents": [transition.agent for transition in learned.transitions],
        "problems": problems(records.spans),
        "unjoined": [span.attributes.get("unjoined") for span in records.spans if span.kind == "llm" and span.call_id is None],
        "diagnostics": list(learned.diagnostics),
    }


async def main(name: str) -> dict[str, Any]:
    framework = next(framework for framework in FRAMEWORKS if framework.name == name)
    registry().load("adapters", name)()
    program = importlib.import_module(f"programs.with_{name.replace('-', '_')}")
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(folder)
        async with open_world(Path(folder), getattr(program, "reply", script.reply)) as world:
            alone = await one(world, program, 40, False)
            streamed = await one(world, program, 41, True) if framework.streams else None
            together = await asyncio.gather(*(one(world, program, number, False) for number in range(50, 58)))
    versions = {package: version(package) for package in framework.packages}
    return {"alone": alone, "streamed": streamed, "together": together, "versions": versions}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(main(sys.argv[1])), default=repr))
