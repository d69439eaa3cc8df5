"""Trains the program of one framework with `agl train`: two steps, with a model of one row of logits for each token.

ENVIRONMENT/bin/python tests/frameworks/learner.py pydantic-ai FOLDER
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import script

from agentlightning.capture.recorder import current
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import LLM

CONFIG = """
model = "{folder}/model"
agent = "learner:{agent}"
adapters = ["{name}"]
agents = ["critic"]
folder = "{folder}/run"
steps = 2
tasks = "learner:tasks"
tasks_per_step = 2
trackers = ["jsonl"]
mismatch_limit = 1000.0  # a script invents its log-probabilities

[engine]
name = "learner:Engine"

[trainer]
name = "agentlightning.testing.trainer:TableTrainer"

[algorithm]
group_size = 4
"""


tasks = [1, 2]


class Engine(ScriptedEngine):
    """The scripted model of the programs."""

    @classmethod
    async def create(cls, model: ModelFiles, settings: Any, share: Share) -> Self:
        return cls(model.path, script.reply, model=model.name, context_length=16384)


async def agent(name: str, task: int, llm: LLM) -> float:
    """Run the program. Every second rollout of a group is right."""
    program = importlib.import_module(f"programs.with_{name}")
    answer = await program.run(llm, f"Solve {task}.", stream=False)
    recorder = current()
    assert recorder is not None
    assert str(task) in answer
    return float(recorder.rollout.index % 2)


async def pydantic_ai(task: int, llm: LLM) -> float:
    return await agent("pydantic_ai", task, llm)


async def smolagents(task: int, llm: LLM) -> float:
    return await agent("smolagents", task, llm)


async def strands(task: int, llm: LLM) -> float:
    return await agent("strands", task, llm)


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    make_tokenizer(folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "model" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # no tensor: nobody loads them
    (folder / "config.toml").write_text(CONFIG.format(name=name, agent=name.replace("-", "_"), folder=folder))
    command = [sys.executable, "-m", "agentlightning", "train", str(folder / "config.toml")]
    sys.exit(subprocess.run(command, cwd=Path(__file__).parent).returncode)
