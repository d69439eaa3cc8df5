"""Measures tokens per second of the torch engine for groups of replies to one prompt: `engine_speed.py smollm2`.

Each point samples `group` replies of equal length to a prompt of `context` tokens, in bfloat16 on a GPU. Seconds include the prefill that
the group shares. `decode_tokens_per_s` divides the sampled tokens by all of these seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import numpy as np

from agentlightning.types import Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from measuring import DRY, Figures, memory_errors, peak_memory, reset_peak
from models import model_files

GROUPS = (2,) if DRY else (4, 8, 16, 32, 64, 128)
CONTEXTS = (16,) if DRY else (1024, 4096, 16384)
REPLY = 4 if DRY else 128


async def sample(engine: TorchEngine, group: int, context: int, seed: int) -> int:
    prompt = ints(np.random.default_rng(seed).integers(0, engine._vocabulary, context))

    async def reply(index: int) -> int:
        return sum([len(chunk.ids) async for chunk in engine.generate(prompt, Sampling(max_tokens=REPLY, seed=index))])

    return sum(await asyncio.gather(*(reply(index) for index in range(group))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("smollm2", "qwen05"))
    name = parser.parse_args(sys.argv[1:]).model
    figures, files = Figures(), model_files(name)
    share: dict[str, Any] = {}
    engine = asyncio.run(TorchEngine.create(files, TorchEngineSettings(max_batch=max(GROUPS)), share))
    asyncio.run(sample(engine, 1, 16, 0))  # warm up
    for context in CONTEXTS:
        for group in GROUPS:
            point = {"model": name, "context": context, "group": group, "reply": REPLY}
            if figures.has(**point):
                continue
            if context + REPLY > engine.info.context_length:
                figures.add(**point, error=f"the model's context is {engine.info.context_length}")
                continue
            with memory_errors(figures, **point):
                reset_peak()
                began = time.perf_counter()
                tokens = asyncio.run(sample(engine, group, context, seed=1 + context + group))
                seconds = time.perf_counter() - began
                figures.add(**point, tokens=tokens, seconds=seconds, decode_tokens_per_s=tokens / seconds, peak_bytes=peak_memory())
    asyncio.run(engine.close())


if __name__ == "__main__":
    main()
