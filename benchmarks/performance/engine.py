"""Compares tokens per second of the torch engine with its own bound, transformers' `generate`, and vLLM where it is installed.

    python benchmarks/performance/engine.py                              # SmolLM2: 6 groups of 8 replies, 400 prompt and 48 new tokens
    python benchmarks/performance/engine.py --model FOLDER --rounds 3    # another model
    python benchmarks/performance/engine.py --groups 2 --rollouts 4      # smaller

Each round runs the engines in turn on the same requests, so that background load affects them equally. A first round does not count. Of the
others the best counts. `generate` prefills every prompt of a group, takes longer than all the rest, and runs once, after them. The prompts
are random tokens, the replies of a group share one, and no reply ends early. Tokens per second include the prefill.

The engine and `generate` run in float32, and in bfloat16 where this machine is faster in it.

The bound is the time of a decode step's matrix products alone, with every reply in flight: those of all linear layers, and of the head.
`decode` counts only the steps after the prefill, and `share` is its part of the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from bounds import console, in_turn, tracked, worthwhile_dtypes
from rich.table import Table
from transformers import AutoModelForCausalLM

from agentlightning.config.models import find_model
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import LightningError
from agentlightning.types import IntArray, Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.weights import find_device, get_weights, no_bars
from agentlightning_torch.workers import end_workers

Prompts = list[IntArray]


async def sampled(engine: Engine, prompts: Prompts, new: int) -> tuple[int, float]:
    """Return the sampled tokens, and the seconds after every reply has its first token."""
    waiting, started = len(prompts), 0.0

    async def one(ids: IntArray, seed: int) -> int:
        nonlocal waiting, started
        count = 0
        async for chunk in engine.generate(ids, Sampling(max_tokens=new, seed=seed)):
            if not count:
                waiting -= 1
                started = time.perf_counter() if not waiting else 0.0
            count += len(chunk.ids)
        return count

    await engine.load(engine.policy)  # remove leftovers of the previous round
    tokens = sum(await asyncio.gather(*(one(ids, seed) for seed, ids in enumerate(prompts))))
    if tokens != new * len(prompts):
        raise SystemExit(f"The engine sampled {tokens} tokens of {new * len(prompts)}: some replies ended early. Use another model.")
    return tokens, time.perf_counter() - started


def padded(files: ModelFiles, dtype: str, prompts: Prompts, new: int) -> float:
    """Return the seconds that `generate` of a plain model takes."""
    device = find_device("auto")
    with no_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(files.path, dtype=getattr(torch, dtype)).to(device).eval()
    started = time.perf_counter()
    ids = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(model.device)
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
    return time.perf_counter() - started


def bound(model: Any, rows: int) -> float:
    """Return tokens per second if a decode step of `rows` replies were its matrix products alone."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {size: torch.randn(rows, size).to(layers[0].weight) for size in {layer.in_features for layer in layers}}
    best = float("inf")
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            for layer in layers:
                layer(inputs[layer.in_features])
            best = min(best, time.perf_counter() - started)
    end_workers()  # of this thread, or the engine's would wait less actively
    return rows / best


async def vllm_engine(files: ModelFiles) -> Engine | str:
    """Return vLLM's engine, or why there is none."""
    try:
        from agentlightning_vllm.engine import VllmEngine

        return await VllmEngine.create(files, VllmEngine.Settings(), {})
    except (ImportError, LightningError) as error:
        return str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name or a folder")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--rollouts", type=int, default=8, help="replies per group")
    parser.add_argument("--prompt", type=int, default=400, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=48, help="sampled tokens per reply")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="number types, the reference first")
    asyncio.run(measure(parser.parse_args()))


async def measure(arguments: argparse.Namespace) -> None:
    files, rows, new = find_model(arguments.model), arguments.groups * arguments.rollouts, arguments.new
    engines: dict[str, Engine] = {}
    bounds: dict[str, float] = {}
    dtypes = arguments.dtypes or worthwhile_dtypes(files.path)
    for dtype in dtypes:
        share: dict[str, Any] = {}
        model = get_weights(share, files, dtype=dtype).model
        engines[f"torch engine, {dtype}"] = await TorchEngine.create(files, TorchEngineSettings(max_batch=rows), share)
        bounds[f"torch engine, {dtype}"] = bound(model, rows)
        vocabulary = model.config.get_text_config().vocab_size
    vllm = await vllm_engine(files)
    if not isinstance(vllm, str):
        engines["vLLM"] = vllm
    random = np.random.default_rng(0)
    prompts = [
        ids for _ in range(arguments.groups) for ids in [ints(random.integers(0, vocabulary, arguments.prompt))] * arguments.rollouts
    ]
    best: dict[str, float] = {}
    decode: dict[str, float] = {}
    for name, counts in in_turn(engines, arguments.rounds):
        started = time.perf_counter()
        tokens, rest = await sampled(engines[name], prompts, new)
        if counts:
            best[name] = max(best.get(name, 0), tokens / (time.perf_counter() - started))
            decode[name] = max(decode.get(name, 0), (tokens - rows) / rest)
    for engine in engines.values():
        await engine.close()
    engines.clear()
    for dtype, name in zip(dtypes, tracked([f"generate, {dtype}" for dtype in dtypes]), strict=True):
        best[name] = rows * new / padded(files, dtype, prompts, new)
    report(arguments, best, decode, bounds)
    if isinstance(vllm, str):
        console.print(f"vLLM: {vllm}")


def report(arguments: argparse.Namespace, best: Mapping[str, float], decode: Mapping[str, float], bounds: Mapping[str, float]) -> None:
    title = (
        f"{arguments.model}: {arguments.groups} groups of {arguments.rollouts}, {arguments.prompt} prompt and {arguments.new} new tokens, "
        f"best of {arguments.rounds}, {torch.get_num_threads()} threads"
    )
    table = Table(title=title, title_justify="left")
    for column in ("", "tokens/s", "ratio", "decode tokens/s", "bound", "share"):
        table.add_column(column, justify="left" if not column else "right")
    reference = next(iter(best.values()))
    for name, speed in best.items():
        row = [name, f"{speed:.1f}", f"{speed / reference:.2f}", *[""] * 3]
        if name in decode:
            row[3] = f"{decode[name]:.1f}"
        if name in bounds:
            row[4:] = [f"{bounds[name]:.0f}", f"{decode[name] / bounds[name]:.0%}"]
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
