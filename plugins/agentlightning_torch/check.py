"""The torch check of `agl doctor`: sample and take a step."""

from __future__ import annotations

import asyncio
import tempfile

import numpy as np
import torch

from agentlightning.contracts.model import Share
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import PPOClip
from agentlightning.types import Sampling, Task, Trajectory, Transition, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings, TorchTrainer

PROMPT = tuple(range(5, 25))


def check() -> str:
    """Sample two replies from a tiny model, take a step on them, and compare the log-probabilities of engine and trainer."""

    async def sample_and_step(folder: str) -> str:
        share: Share = {}
        files = tiny_model(folder)
        trainer = await TorchTrainer.create(files, Settings(lr=1e-3), share)
        engine = await TorchEngine.create(files, TorchEngineSettings(), share)
        try:
            trajectories = [await _sampled(engine, index) for index in range(2)]
            await engine.pause()
            _, metrics = await trainer.step(make_batch(trajectories, [np.ones(1), -np.ones(1)]), PPOClip())
        finally:
            await engine.close()
            await trainer.close()
        weights, difference = trainer.weights, metrics["mismatch_abs"]
        limit = 1e-3 if weights.dtype == torch.float32 else 0.1
        if not difference < limit:
            raise RuntimeError(f"Engine and trainer differ by {difference:.3g} in log-probability. Expected below {limit:g}.")
        kind = str(weights.dtype).removeprefix("torch.")
        shape = "forest" if trainer.capabilities.forest else "rows"
        return f"sampled two replies and took a step on {weights.device} in {kind} ({shape}); log-probabilities agree to {difference:.1g}"

    with tempfile.TemporaryDirectory(prefix="agl-doctor-") as folder:
        return asyncio.run(sample_and_step(folder))


async def _sampled(engine: TorchEngine, index: int) -> Trajectory:
    chunks = [chunk async for chunk in engine.generate(ints(PROMPT), Sampling(max_tokens=8, seed=index))]
    transition = Transition(
        completion_id=str(index),
        call_id="",
        prompt_ids=ints(PROMPT),
        response_ids=ints(np.concatenate([chunk.ids for chunk in chunks])),
        logprobs=np.concatenate([chunk.logprobs for chunk in chunks]),  # type: ignore[arg-type]
        versions=ints(np.zeros(sum(len(chunk.ids) for chunk in chunks))),
        temperature=1.0,
        agent=None,
        index=0,
        turn=0,
    )
    return Trajectory(
        task=Task("task", None),
        rollout_id=str(index),
        attempt_id=str(index),
        group="group",
        index=index,
        mode="train",
        status="succeeded",
        reward=float(index),
        transitions=(transition,),
    )
