"""Measures tokens per second, share of the bf16 peak, and memory of a train step, as a forest and as rows: `trainer_speed.py smollm2`.

A point is one group of rollouts with four turns. Half of `context` is their shared prompt. Each turn adds an eighth, half of it sampled. A
step computes PPO's loss on packs, the backward pass, and AdamW for all parameters. The faster of two steps counts, after a first step that
compiles. `rows` are root-to-leaf rows. benchmarks/performance/forest.py describes how `operations` are counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

from measuring import DRY, Figures, memory_errors, peak_memory, reset_peak, use_performance_scripts
from models import model_files

use_performance_scripts()
from forest import FOREST, LR, PEAKS, ROWS, Bench, rollouts, work_of  # noqa: E402  (benchmarks/performance)

GROUPS = (2,) if DRY else (4, 8, 16, 32)
CONTEXTS = (64,) if DRY else (1024, 4096, 16384)
TURNS = 4
PACK = 16384


def measure(bench: Bench, batch: Any, way: str, tokens_per_pack: int) -> dict[str, Any]:
    work = work_of(way, batch, tokens_per_pack)
    tokens = sum(len(pack) for packs in work for pack in packs)
    fastest = float("inf")
    reset_peak()
    for turn in range(2 if DRY else 3):
        bench.wait()
        began = time.perf_counter()
        bench.gradient(batch, work, way == FOREST)
        bench.optimizer.step(LR)
        bench.wait()
        if turn:
            fastest = min(fastest, time.perf_counter() - began)
    operations = bench.operations(batch, work)
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else ""
    peak = next((value for name, value in PEAKS.items() if card and all(word in card for word in name.split())), None)
    return {
        "tokens": tokens,
        "trained_tokens": batch.trained_tokens,
        "seconds": fastest,
        "tokens_per_s": tokens / fastest,
        "trained_tokens_per_s": batch.trained_tokens / fastest,
        "bf16_share": operations / fastest / peak if peak else None,
        "peak_bytes": peak_memory(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("smollm2", "qwen05"))
    name = parser.parse_args(sys.argv[1:]).model
    figures, files = Figures(), model_files(name)
    bench = Bench.load(SimpleNamespace(model=files.path, dtype=None, train="full", threads=1 if DRY else torch.get_num_threads()))  # type: ignore[arg-type]
    config = bench.model.config.get_text_config()
    for context in CONTEXTS:
        for group in GROUPS:
            for way in (FOREST, ROWS):
                point = {"model": name, "context": context, "group": group, "way": "forest" if way == FOREST else "rows"}
                if figures.has(**point):
                    continue
                if context > config.max_position_embeddings:
                    figures.add(**point, error=f"the model's context is {config.max_position_embeddings}")
                    continue
                with memory_errors(figures, **point):
                    half = context // (4 * TURNS)
                    batch = rollouts(group, TURNS, context // 2, half, half, config.vocab_size)
                    figures.add(**point, **measure(bench, batch, way, max(PACK, context)))
                bench.optimizer.zero()


if __name__ == "__main__":
    main()
