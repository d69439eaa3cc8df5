"""Compares tokens per second of the torch engine, left-padded `generate`, and transformers' continuous batching.

    python benchmarks/performance/engine.py [--model smollm2-135m] [--requests 16] [--rounds 2]

Each round runs all of them in turn on the same requests, so that background load affects them equally. The best round of each counts.
Compare ratios, not absolute numbers. Each request samples 48 to 64 tokens at temperature 1, and none ends early.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from agentlightning.config.models import find_model
from agentlightning.types import Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.weights import get_weights

Work = list[tuple[list[int], int]]
"""Return prompts, and the number of tokens to sample for each."""


def requests(tokenizer: Any, count: int) -> Work:
    questions = [
        f"What is {7 * i + 3} plus {5 * i + 11}? Answer in {i % 5 + 1} sentences. {'Think well. ' * (i % 4)}" for i in range(count)
    ]
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False) for q in questions]
    return [(tokenizer.encode(text, add_special_tokens=False), 48 + 16 * i // max(1, count - 1)) for i, text in enumerate(texts)]


async def ours(engine: TorchEngine, work: Work) -> int:
    async def one(ids: list[int], limit: int, seed: int) -> int:
        return sum([len(chunk.ids) async for chunk in engine.generate(ints(ids), Sampling(max_tokens=limit, seed=seed))])

    await engine.load(engine.policy)  # remove leftovers of the previous round
    return sum(await asyncio.gather(*(one(ids, limit, seed) for seed, (ids, limit) in enumerate(work))))


def one_at_a_time(engine: TorchEngine, work: Work) -> int:
    async def run() -> int:
        return sum([await ours(engine, [item]) for item in work])

    return asyncio.run(run())


def padded(model: Any, work: Work) -> int:
    longest, most = max(len(ids) for ids, _ in work), max(limit for _, limit in work)
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in work], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in work], device=model.device)
    with torch.no_grad():
        model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=most, min_new_tokens=most, pad_token_id=0)
    return sum(limit for _, limit in work)


def continuous(model: Any, work: Work) -> int:
    most = max(limit for _, limit in work)  # generate_batch takes a single limit
    config = GenerationConfig(do_sample=True, max_new_tokens=most, eos_token_id=-1, pad_token_id=0)
    out = model.generate_batch([ids for ids, _ in work], generation_config=config)
    done = sum(len(reply.generated_tokens) for reply in out.values())
    if done != most * len(work):
        raise SystemExit(f"generate_batch made {done} tokens of {most * len(work)}")
    return sum(limit for _, limit in work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    files, share = find_model(arguments.model), {}
    model = get_weights(share, files).model
    engine = asyncio.run(TorchEngine.create(files, TorchEngineSettings(), share))
    work = requests(AutoTokenizer.from_pretrained(files.path), arguments.requests)
    ways: dict[str, Callable[[], int]] = {
        "torch engine": lambda: asyncio.run(ours(engine, work)),
        "generate, left-padded": lambda: padded(model, work),
        "generate_batch": lambda: continuous(model, work),
        "torch engine, one at a time": lambda: one_at_a_time(engine, work),
    }
    best = dict.fromkeys(ways, 0.0)
    asyncio.run(ours(engine, work[:1]))  # warm up
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            speed = run() / (time.perf_counter() - start)
            best[name] = max(best[name], speed)
            print(f"  {name}: {speed:.1f} tok/s", flush=True)
    asyncio.run(engine.close())
    total = sum(limit for _, limit in work)
    print(f"{arguments.model}, {len(work)} requests, {total} tokens, best of {arguments.rounds}, {torch.get_num_threads()} threads")
    for name, speed in best.items():
        print(f"{name:28} {speed:8.1f} tok/s   engine is {best['torch engine'] / speed:5.2f} times as fast")


if __name__ == "__main__":
    main()
