"""Threads that are done with torch leave no OpenMP workers. The tests run in processes of their own, with two threads each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of a process in /proc")

BEGIN = """
import asyncio, os, sys, threading, time
import numpy as np
import torch

from agentlightning.rl.loss import PPOClip
from agentlightning.types import Sampling, ints
from agentlightning_torch import sampler, update
from agentlightning_torch.check import _sampled
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings, TorchTrainer
from agentlightning_torch.workers import end_workers

from agentlightning.rl.batch.build import make_batch

assert torch.get_num_threads() == 2
most = 0

def workers():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

def work():
    global most
    torch.ones(1 << 22).sum()  # large enough for two threads
    most = max(most, workers())

def seen(function):
    def wrapped(*arguments, **options):
        work()
        return function(*arguments, **options)
    return wrapped

def settled(count):
    for _ in range(200):
        if workers() == count:
            return True
        time.sleep(0.01)
    return False

before = workers()
"""

ALONE = """
work()
assert most == before + 1, (most, before)
end_workers()
assert settled(before), (workers(), before)
work()
assert workers() == before + 1
"""

RUN = """
sampler.draw = seen(sampler.draw)
update.Update.prepare = seen(update.Update.prepare)

async def main():
    share, files = {}, tiny_model(sys.argv[1])
    trainer = await TorchTrainer.create(files, Settings(lr=1e-3), share)
    engine = await TorchEngine.create(files, TorchEngineSettings(), share)
    before = workers()
    trajectories = [await _sampled(engine, index) for index in range(2)]
    assert most == before + 1, (most, before)
    assert settled(before), f"the idle engine keeps {workers() - before} workers"
    await trainer.step(make_batch(trajectories, [np.ones(1), -np.ones(1)]), PPOClip())
    assert most == before + 1, "the trainer found the engine's workers still there"
    assert settled(before), f"the trainer keeps {workers() - before} workers"
    await engine.close()
    await trainer.close()

asyncio.run(main())
"""


def run(script: str, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN + script, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_workers_of_a_thread_end_and_come_back() -> None:
    run(ALONE)


def test_engine_and_trainer_leave_the_cores_to_each_other(tmp_path: Path) -> None:
    run(RUN, str(tmp_path))
