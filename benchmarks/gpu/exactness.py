"""Measures the error of the forest, rows, and the engine against single-transition rows in float64: `exactness.py smollm2`.

Trainer figures: the largest and mean difference of a token's log-probability in nats, and the relative difference of the gradient of all
parameters, |g - g64| / |g64|. The tokens are random, so they are far less probable than sampled ones.

Engine figures: the difference between the log-probabilities recorded during sampling and those the trainer computes for the same tokens as
a forest.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import Pack, cut_packs, leaf_rows, transition_rows
from agentlightning.types import Sampling, Task, Trajectory, Transition, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.forward import group_rows, score_forest, score_rows
from agentlightning_torch.weights import get_weights
from measuring import DRY, Figures, memory_errors, use_performance_scripts
from models import model_files

use_performance_scripts()
from forest import rollouts  # noqa: E402  (benchmarks/performance)

DTYPES = ("float32", "bfloat16")
MAX_TOKENS = 4096
SHAPE = (2, 2, 16, 4, 4) if DRY else (4, 3, 256, 32, 32)
"""Rollouts, turns, shared tokens, and sampled and observed tokens per turn."""


def scores(model: Any, batch: Batch, way: str) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Return the log-probability of each trained token in batch order, and the gradient of their weighted sum."""
    model.zero_grad(set_to_none=True)
    logprobs = np.full(len(batch), np.nan)

    def work() -> Sequence[Sequence[Pack]]:
        if way == "forest":
            return [[pack] for pack in cut_packs(batch, MAX_TOKENS)]
        return group_rows(leaf_rows(batch) if way == "rows" else transition_rows(batch), MAX_TOKENS)

    for packs in work():
        scored = score_forest(model, batch, packs[0]) if way == "forest" else score_rows(model, batch, packs)
        factor = torch.from_numpy(batch.advantage[scored.index] * batch.weight[scored.index]).to(scored.logprob)
        (factor * scored.logprob).sum().backward()
        logprobs[scored.index] = scored.logprob.detach().double().cpu().numpy()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return logprobs[batch.trained], gradients


def trainer(figures: Figures, name: str, files: Any) -> None:
    """Compare forest and rows in each dtype with float64."""
    weights = get_weights({}, files, dtype="float32")
    batch = rollouts(*SHAPE, weights.model.config.get_text_config().vocab_size)
    exact, exact_gradient = scores(copy.deepcopy(weights.model).double(), batch, "transitions")
    for dtype in DTYPES:
        for way in ("forest", "rows"):
            point = {"what": "trainer", "model": name, "dtype": dtype, "way": way}
            if figures.has(**point):
                continue
            with memory_errors(figures, **point):
                model = copy.deepcopy(weights.model).to(getattr(torch, dtype))
                logprobs, gradient = scores(model, batch, way)
                off = np.abs(logprobs - exact)
                apart = sum(float((gradient[n] - g).square().sum()) for n, g in exact_gradient.items())
                relative = (apart / sum(float(g.square().sum()) for g in exact_gradient.values())) ** 0.5
                figures.add(**point, tokens=len(off), mean=float(off.mean()), max=float(off.max()), gradient=relative)


def engine(figures: Figures, name: str, files: Any) -> None:
    """Compare the engine's recorded log-probabilities with the trainer's, on the same weights."""
    for dtype in DTYPES:
        point = {"what": "engine against trainer", "model": name, "dtype": dtype}
        if figures.has(**point):
            continue
        with memory_errors(figures, **point):
            share: dict[str, object] = {}
            served = asyncio.run(TorchEngine.create(files, TorchEngineSettings(dtype=dtype, memory_gb=2), share))
            batch = asyncio.run(sampled(served, group=2 if DRY else 8, tokens=8 if DRY else 128))
            with torch.no_grad():
                model = get_weights(share, files).model
                scored = [score_forest(model, batch, pack) for pack in cut_packs(batch, MAX_TOKENS)]
            off = np.concatenate([np.abs(s.logprob.double().cpu().numpy() - batch.rollout_logprobs[s.index]) for s in scored])
            asyncio.run(served.close())
            figures.add(**point, tokens=len(off), mean=float(off.mean()), max=float(off.max()))


async def sampled(engine: TorchEngine, *, group: int, tokens: int) -> Batch:
    """Sample replies to one random prompt together, at temperature 1."""
    vocabulary = engine._vocabulary
    prompt = ints(np.random.default_rng(0).integers(0, vocabulary, 24))

    async def reply(index: int) -> Trajectory:
        chunks = [chunk async for chunk in engine.generate(prompt, Sampling(max_tokens=tokens, seed=index))]
        transition = Transition(
            completion_id=str(index),
            call_id="",
            prompt_ids=prompt,
            response_ids=ints(np.concatenate([chunk.ids for chunk in chunks])),
            logprobs=np.concatenate([chunk.logprobs for chunk in chunks]).astype(np.float32),
            versions=ints(np.zeros(sum(len(chunk.ids) for chunk in chunks))),
            temperature=1.0,
            agent=None,
            index=0,
            turn=0,
        )
        return Trajectory(
            task=Task("t", None),
            rollout_id=str(index),
            attempt_id=str(index),
            group="g",
            index=index,
            mode="train",
            status="succeeded",
            reward=1.0,
            transitions=(transition,),
        )

    replies = await asyncio.gather(*(reply(index) for index in range(group)))
    return make_batch(list(replies), [np.ones(1) for _ in replies])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("smollm2", "qwen05"))
    name = parser.parse_args(sys.argv[1:]).model
    figures, files = Figures(), model_files(name)
    with memory_errors(figures, what="trainer", model=name):
        trainer(figures, name, files)
    engine(figures, name, files)


if __name__ == "__main__":
    main()
