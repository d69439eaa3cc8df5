"""The fake engine keeps the contract."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentlightning.contracts.engine import Chunk
from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.types import Policy, Sampling, ints

PROMPT = ints([1, 2, 3])


async def run(engine: ScriptedEngine, **sampling: Any) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(PROMPT, Sampling(**sampling))]


def ids(chunks: list[Chunk]) -> list[int]:
    return [int(i) for chunk in chunks for i in chunk.ids]


async def test_a_list_is_replied_in_order_and_then_exhausted(tokenizer_folder: Path) -> None:
    engine = ScriptedEngine(tokenizer_folder, ["ab", [70, 71]])
    assert engine.tokenizer.decode(ids(await run(engine))) == "ab<|im_end|>"
    assert ids(await run(engine)) == [70, 71, 2]
    with pytest.raises(EngineError, match="2 replies"):
        await run(engine)


async def test_limits_stop_ids_and_the_context_end_a_reply(tokenizer_folder: Path) -> None:
    engine = ScriptedEngine(tokenizer_folder, lambda prompt, sampling: [70, 71, 72, 73, 74, 75], chunk=2, context_length=8)
    cut = await run(engine, max_tokens=3)
    assert (ids(cut), cut[-1].finish, cut[0].finish) == ([70, 71, 72], "length", None)
    stopped = await run(engine, stop_ids=(9, 71))
    assert (ids(stopped), stopped[-1].finish) == ([70, 71], "stop")
    assert len(ids(await run(engine))) == 5
    with pytest.raises(ContextOverflow, match="8 tokens"):
        [c async for c in engine.generate(ints(range(8)), Sampling())]


async def test_a_token_has_one_logprob_whatever_the_seed(tokenizer_folder: Path) -> None:
    engine = ScriptedEngine(tokenizer_folder, lambda prompt, sampling: "abc")
    first, again, other = [(await run(engine, seed=seed))[0].logprobs for seed in (1, 1, 2)]
    assert first.tolist() == again.tolist() == other.tolist()


async def test_closing_aborts_and_pausing_waits_for_what_is_under_way(tokenizer_folder: Path) -> None:
    engine = ScriptedEngine(tokenizer_folder, lambda prompt, sampling: "abcdefgh", chunk=1, delay=0.005)
    stream: Any = engine.generate(PROMPT, Sampling())
    await anext(stream)
    await stream.aclose()
    assert engine.asked[0].status == "aborted"
    running = asyncio.create_task(run(engine))
    await asyncio.sleep(0.01)
    await engine.pause()
    assert engine.asked[1].status == "finished"
    held = asyncio.create_task(run(engine))
    await engine.load(Policy(version=1, base="b", uri="memory:x"))
    await asyncio.sleep(0.02)
    assert len(engine.asked) == 2  # loading does not end the pause
    await engine.resume()
    assert (await running)[0].version == 0
    assert (await held)[0].version == 1
