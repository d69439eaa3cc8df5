"""Supervised fine-tuning with the torch trainer: the gradient is that of plain cross-entropy, and a whole run learns what it is shown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Trajectory
from agentlightning_torch.trainer import Settings, TorchTrainer

TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]


def shown(index: int, history: list[int], replies: list[list[int]]) -> Trajectory:
    """A rollout whose replies were demonstrated, each going on from the one before."""
    turns = [(reply, (40 + turn, 41)) for turn, reply in enumerate(replies)]
    transitions = conversation(history, turns, id=f"c{index}", logprobs=None, versions=-1, demonstrated=True)
    continued = [structs.replace(each, continues=each.index - 1 if each.index else None) for each in transitions]
    return trajectory(0, *continued, group=str(index))


@pytest.mark.parametrize("tokens_per_pack", [4096, 24], ids=["one pack", "several packs"])
async def test_the_gradient_is_that_of_plain_cross_entropy_over_the_same_rows(model: ModelFiles, tokens_per_pack: int):
    rng = np.random.default_rng(0)
    shared = rng.integers(5, 60, 6).tolist()
    rollouts = [shown(k, [*shared, 60 + k], [rng.integers(5, 60, 4 + k).tolist() for _ in range(2)]) for k in range(3)]
    batch = make_batch(rollouts, [np.ones(2)] * 3, loss_aggregation="token_mean", demonstrations=True)

    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float64)
    count = sum(len(t.response_ids) for each in rollouts for t in each.transitions)
    assert batch.trained_tokens == count
    loss = torch.zeros((), dtype=torch.float64)
    for each in rollouts:
        for t in each.transitions:
            row = torch.tensor([*t.prompt_ids.tolist(), *t.response_ids.tolist()])[None]
            labels = row.clone()
            labels[0, : len(t.prompt_ids)] = -100
            logits = reference(input_ids=row).logits[0, :-1]
            loss = loss + torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=-100)
    loss = loss / count
    loss.backward()

    trainer = await TorchTrainer.create(model, Settings(device="cpu", dtype="float64", tokens_per_pack=tokens_per_pack, clip_norm=1e9), {})
    found: dict[str, torch.Tensor] = {}

    def keep(lr: float) -> float:
        found.update({name: p.grad.clone() for name, p in trainer.weights.model.named_parameters() if p.grad is not None})
        trainer.optimizer.zero()
        return 0.0

    trainer.optimizer.step = keep  # type: ignore[method-assign]
    try:
        _, metrics = await trainer.step(batch, SFTLoss())
    finally:
        await trainer.close()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-7)
    assert "mismatch_abs" not in metrics, "nobody sampled it, so there is nothing to compare"
    assert "version_gap_mean" not in metrics
    names = {name for name, p in reference.named_parameters() if p.grad is not None}
    assert names == found.keys()
    for name, p in reference.named_parameters():
        # norms and rotary angles are float32 inside transformers, whatever the weights are
        difference = (found[name] - p.grad).norm() / p.grad.norm()
        assert difference < 1e-6, f"{name}: {difference}"


async def two_turns(task: Any, llm: agl.LLM) -> float:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        right = 0
        for turn in range(2):
            answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
            text = answer.choices[0].message.content or ""
            right += text == f"yes {turn}"
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    return right / 2


def demonstrate(task: Any, messages: list[Any], tools: list[Any]) -> Any:
    assert any(message["content"] == task["text"] for message in messages)
    if task["text"] == "why?":
        return {"role": "assistant", "content": "no"}  # wrong: must not be learned
    return {"role": "assistant", "content": f"yes {len(messages) // 2}"}


def nothing(task: Any, messages: list[Any], tools: list[Any]) -> None:
    return None


def settings(model: ModelFiles, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model.path,
        "folder": folder,
        "name": "sft",
        "steps": 4,
        "tasks_per_step": 6,
        "algorithm": agl.SFT(demonstrations=demonstrate),
        "trainer": {"name": "torch", "lr": 3e-3},
        "progress": False,
        **more,
    }


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return read_metrics(run.folder)


def test_a_run_learns_what_it_is_shown_and_nothing_of_a_wrong_demonstration(
    model: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = agl.train(two_turns, tasks=TASKS, eval_tasks=TASKS[:3], **settings(model, tmp_path, steps=30, eval={"every": 0}))
    measured = rows(run)
    for row in measured[1:]:
        assert (row["rollouts"], row["transitions"], row["requests.completed"]) == (6, 12, 12)
        assert row["demonstrated_reward"] == pytest.approx(5 / 6)
        assert "reward" not in row
        assert "tokens_per_second" not in row, "nothing was sampled"
        assert row["trained_tokens"] == 5 * 2 * 6, "five rollouts of two replies: `yes N` and the end mark"
    assert measured[-1]["loss"] < measured[1]["loss"] / 20
    assert measured[-1]["policy_version"] == 30
    eval_metrics = run.result["eval"]
    assert eval_metrics["greedy"]["before"] == 0
    assert eval_metrics["greedy"]["after"] == 1, "the eval rollouts are sampled, and have learned it"
    kept = RunFolder.open(run.folder).read_batch(1)
    assert sorted(each.trained for each in kept.values()) == [0, 12, 12, 12, 12, 12]
    left = [each.excluded for each in kept.values() if each.excluded]
    assert left == [{"the reward of its rollout is below min_reward (1)": 6}]
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(build(), ["show", str(run.folder), "--step", "1", "--mode", "train"]).output
    assert "0 sampled and 66 demonstrated tokens = 60 trained + 6 the reward of its rollout is below min_reward (1)" in shown
    one = next(iter(kept))
    assert "demonstrated, not sampled" in CliRunner().invoke(build(), ["show", str(run.folder), one]).output


def test_a_stopped_run_resumes_to_bitwise_the_same_metrics(model: ModelFiles, tmp_path: Path):
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    class StopAfter:
        def __init__(self) -> None:
            self.stop = asyncio.Event()

        def step(self, row: Any) -> None:
            if row["step"] == 2:
                self.stop.set()

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    def measured(run: agl.Run) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows(run)]

    whole = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path))
    stopper = StopAfter()
    arguments = settings(model, tmp_path)
    del arguments["progress"]
    job = make_job(two_turns, tasks=TASKS, **arguments)
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))  # type: ignore[arg-type]
    assert half.stopped
    resumed = agl.train(two_turns, tasks=TASKS, resume=half.folder, **settings(model, tmp_path))
    assert measured(resumed) == measured(whole)


def test_reinforcement_goes_on_from_the_policy_of_a_supervised_run(model: ModelFiles, tmp_path: Path):
    warm = agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path))
    more = settings(model, tmp_path, algorithm=agl.LightningRL(group_size=4), steps=1, tasks_per_step=1)
    run = agl.train(two_turns, tasks=TASKS, **{**more, "model": str(warm.checkpoint)})
    [row] = rows(run)
    assert row["sampled_tokens"] > 0
    assert "demonstrated_reward" not in row
    assert json.loads((run.folder / "result.json").read_text())["model"] == str(warm.checkpoint)


def test_a_run_without_one_demonstration_is_an_error_after_its_first_rollouts(model: ModelFiles, tmp_path: Path):
    with pytest.raises(ConfigError, match="None of the 12 model calls of the first step has a demonstration"):
        agl.train(two_turns, tasks=TASKS, **settings(model, tmp_path, algorithm=agl.SFT(demonstrations=nothing)))
