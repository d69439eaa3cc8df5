"""verl's workers on a tiny model, beside the torch trainer on the same batches (`make test-verl`)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai import AsyncOpenAI
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl_world import LR, PYTHON, Both, batch_of

import agentlightning as agl
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import TrainerError
from agentlightning.rl.loss import CISPO, PPOClip, SFTLoss
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.weight_sync import WeightCheck
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings as TorchSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_verl.settings import VerlSettings
from agentlightning_verl.trainer import VerlTrainer

pytestmark = [pytest.mark.skipif(PYTHON is None, reason="make test-verl: verl in an environment of its own"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("tiny"), hidden=128)


@pytest.fixture
async def pair(files: ModelFiles) -> AsyncIterator[Any]:
    """Makes a verl trainer and the torch trainer of the same settings."""
    opened: list[Any] = []

    async def made(**settings: Any) -> tuple[VerlTrainer, TorchTrainer]:
        torch.set_num_threads(1)
        verl = await VerlTrainer.create(files, VerlSettings(python=PYTHON, lr=LR, device="cpu", **settings), {})
        opened.append(verl)
        shared = {key: value for key, value in settings.items() if key not in ("workers", "train")}
        opened.append(await TorchTrainer.create(files, TorchSettings(lr=LR, device="cpu", dtype="float32", **shared), {}))
        return verl, opened[-1]

    yield made
    for each in opened:
        await each.close()


def scored(model: Any, ids: np.ndarray) -> np.ndarray:
    tokens = torch.tensor(ids).long()
    with torch.no_grad():
        return model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0].numpy()


@pytest.mark.parametrize("workers", [1, 2])
async def test_steps_are_those_of_the_torch_trainer(pair: Any, tmp_path: Path, workers: int) -> None:
    verl, beside = await pair(workers=workers, schedule="linear", warmup_steps=2, total_steps=9)
    losses = [
        (PPOClip(), 1.0),
        (CISPO(), 0.7),
        (SFTLoss(), 1.0),
        (PPOClip(dual_clip=None), 1.3),
        (PPOClip(epochs=2, minibatches=2), 1.0),
        (CISPO(epochs=3, clip_low=0.1), 1.0),
        (PPOClip(dual_clip=1.01, epochs=4), 1.0),
    ]
    for number, (loss, temperature) in enumerate(losses):
        batch = batch_of(number, temperature=temperature)
        policy, found = await verl.step(batch, loss)
        _, expected = await beside.step(batch, loss)
        assert policy.version == number + 1
        assert found.keys() >= expected.keys() - {"forest_saving", "context_repeat"}
        for name in expected.keys() - {"forest_saving", "context_repeat", "tokens", "seconds", "tokens_per_second"}:
            assert found[name] == pytest.approx(expected[name], abs=1e-4, rel=1e-4), (name, loss)
        await verl.export(tmp_path / f"verl-{number}")
        await beside.export(tmp_path / f"torch-{number}")
        ours, theirs = WeightCheck.read(tmp_path / f"verl-{number}"), WeightCheck.read(tmp_path / f"torch-{number}")
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"verl-{number}", dtype=torch.float32)
        np.testing.assert_allclose(ours.logprobs, scored(model, ours.ids), atol=1e-4)
    nothing = batch_of(advantages=(0.0, 0.0))
    assert (await verl.step(nothing, PPOClip()))[0].version == len(losses)


async def test_weight_decay_is_that_of_the_torch_trainer_and_spares_norms(pair: Any, tmp_path: Path) -> None:
    verl, beside = await pair(weight_decay=0.5)
    for number in range(3):
        await verl.step(batch_of(number), PPOClip())
        await beside.step(batch_of(number), PPOClip())
    await verl.export(tmp_path / "verl")
    await beside.export(tmp_path / "torch")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("verl", "torch"))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        # without a rule in common, norms differ by 1.5e-3; Adam turns the sign of a tiny gradient into a step of 1e-3 in a few places
        assert (weights - theirs[name]).abs().mean() < 1e-5, name


async def test_a_checkpoint_goes_on_as_if_nothing_had_been(pair: Any, files: ModelFiles, tmp_path: Path) -> None:
    verl, _ = await pair()
    await verl.step(batch_of(0), PPOClip())
    await verl.save(tmp_path / "checkpoint")
    policy, expected = await verl.step(batch_of(1), PPOClip())
    await verl.restore(tmp_path / "checkpoint")
    assert verl.policy.version == 1
    again, found = await verl.step(batch_of(1), PPOClip())
    assert again == policy
    for name in ("loss", "grad_norm", "entropy", "off_policy_abs"):  # the batch is of version 0, and this is 1
        assert found[name] == expected[name]
    await verl.step(batch_of(2), PPOClip())
    await verl.export(tmp_path / "after")
    AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint").eos_token_id is not None
    (tmp_path / "bare").mkdir()
    with pytest.raises(TrainerError, match="is not a checkpoint that can resume"):
        await verl.restore(tmp_path / "bare")


async def test_a_lora_adapter_is_trained_exported_and_merged_into_the_checkpoint(pair: Any, files: ModelFiles, tmp_path: Path) -> None:
    verl, _ = await pair(train="lora")
    for number in range(3):
        await verl.step(batch_of(number), PPOClip())
    policy = await verl.export(tmp_path / "adapter")
    assert policy.kind == "lora"
    probe = WeightCheck.read(tmp_path / "adapter")
    assert probe is not None
    base = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32)
    assert probe.difference(scored(base, probe.ids)) > 1e-3
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert probe.difference(scored(adapted, probe.ids)) < 1e-5
    await verl.save(tmp_path / "checkpoint")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    assert probe.difference(scored(merged, probe.ids)) < 1e-5


async def test_a_process_that_is_killed_is_an_error_that_shows_its_log(pair: Any) -> None:
    verl, _ = await pair()
    os.kill(verl._process.pid, signal.SIGKILL)
    with pytest.raises(TrainerError, match=r"verl's process failed to update: .*Its log .*verl\.log ends"):
        await verl.step(batch_of(), PPOClip())


def look_up(word: str) -> str:
    """A tool that takes letters."""
    return f"found {word[:8]}" if word[:8].isalpha() else f"error: {word[:8]!r} is no word"


async def tool_task(task: Any, llm: agl.LLM) -> float:
    """A call of a tool, then an answer that has its result. The reward is the part of the first characters of both that are letters."""
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        call = (await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)).choices[0].message.content or ""
        messages += [{"role": "assistant", "content": call}, {"role": "user", "content": look_up(call)}]
        answer = (await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)).choices[0].message.content or ""
    return sum(each.isalpha() for text in (call, answer) for each in text[:8]) / 16


def test_a_run_trains_with_verl_and_every_step_is_the_torch_trainers(files: ModelFiles, tmp_path: Path) -> None:
    tasks = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]
    run = agl.train(
        tool_task,
        tasks=tasks,
        eval_tasks=tasks,
        model=files.path,
        folder=tmp_path,
        name="verl",
        steps=8,
        tasks_per_step=4,
        algorithm=agl.LightningRL(group_size=8),
        trainer={"name": "verl_world:Both"},
        engine={"name": "torch", "device": "cpu", "dtype": "float32"},
        eval={"every": 2, "samples": 4},
        progress=False,
    )
    rows = read_metrics(run.folder)
    print(*(f"step {row['step']} reward {row['reward']:.3f}" for row in rows if "reward" in row), run.result["eval"], sep="\n")
    assert len(Both.seen) >= 5
    for number, seen in enumerate(Both.seen):
        for name, (found, expected) in seen.items():
            # Adam turns the sign of a gradient that is all but zero into a whole step, so one token may differ by more after some steps
            limit = 1e-3 if name == "mismatch_abs_max" and number else 1e-4
            assert found == pytest.approx(expected, abs=limit, rel=0), (number, name)
    assert all(row["mismatch_abs"] < 1e-3 for row in rows if "mismatch_abs" in row)
    eval_metrics = run.result["eval"]["sampled"]
    assert eval_metrics["after"] > eval_metrics["before"] + 0.1
    assert (run.folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert RunFolder.open(run.folder).steps()[-1] == 8
    assert not RunFolder.open(run.folder).weights.exists()
