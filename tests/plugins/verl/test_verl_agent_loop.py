"""Our manager in verl's own trainer: between verl's prompts and its TransferQueue, with a real agent, gateway, store and model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from verl_world import PYTHON

from agentlightning.cli.main import build

pytestmark = [pytest.mark.skipif(PYTHON is None, reason="make test-verl: verl in an environment of its own"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What verl has got: three prompts of two rollouts each, the third of which fails; then the same in validation, one greedy rollout."""
    folder = tmp_path_factory.mktemp("verl")
    program = Path(__file__).with_name("agent_loop_program.py")
    ran = subprocess.run([str(PYTHON), str(program), str(folder)], capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {**json.loads((folder / "found.json").read_text()), "folder": str(folder), "said": ran.stderr}


def test_every_prompt_ends_as_verl_knows_it(found: dict[str, Any]) -> None:
    for mode in ("train", "val"):
        assert found[mode]["prompts"] == {f"{mode}-0": "finished", f"{mode}-1": "finished", f"{mode}-2": "failure"}
    assert "this one fails" in found["said"]


def test_each_attempt_becomes_root_to_leaf_rows_with_its_reward_on_the_last_token(found: dict[str, Any]) -> None:
    # prompt 0: one conversation of two turns; prompt 1: a sub-agent's conversation beside it
    assert set(found["train"]["samples"]) == {"train-0_0_0", "train-0_1_0", *(f"train-1_{n}_{row}" for n in (0, 1) for row in (0, 1))}
    assert set(found["val"]["samples"]) == {"val-0_0_0", "val-1_0_0", "val-1_0_1"}
    for mode in ("train", "val"):
        for key, sample in found[mode]["samples"].items():
            prompt, response, mask = sample["prompts"], sample["responses"], sample["response_mask"]
            assert sample["input_ids"] == prompt + response
            assert sample["position_ids"] == list(range(len(prompt) + len(response)))
            assert sample["loss_mask"] == mask
            assert len(mask) == len(response) == len(sample["rollout_log_probs"]) == len(sample["rm_scores"])
            assert sample["rm_scores"] == [0.0] * (len(response) - 1) + [1.25 if "-1_" in key else 0.25]
            assert all((score < 0) == bool(trained) for score, trained in zip(sample["rollout_log_probs"], mask, strict=True))
            turns = 1 if key.endswith("_1") else 2
            starts = [place for place, trained in enumerate(mask) if trained and not (place and mask[place - 1])]
            assert len(starts) == turns
            assert sum(mask) <= (4 if turns == 1 else 16)


def test_tags_say_lengths_step_and_the_version_that_sampled(found: dict[str, Any]) -> None:
    for mode in ("train", "val"):
        for key, tag in found[mode]["tags"].items():
            sample = found[mode]["samples"][key]
            assert tag["status"] == "success"
            assert (tag["prompt_len"], tag["response_len"]) == (len(sample["prompts"]), len(sample["responses"]))
            assert tag["seq_len"] == tag["prompt_len"] + tag["response_len"]
            assert (tag["global_steps"], tag["min_global_steps"], tag["max_global_steps"]) == (7, 7, 7)


def test_verls_replay_buffer_samples_what_was_put(found: dict[str, Any]) -> None:
    assert found["sampled"] == 6
    assert found["asked"] == 6  # one request id for each rollout that called: its calls stay with one server


def test_everything_is_recorded_in_our_store(found: dict[str, Any]) -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(build(), ["show", str(Path(found["folder"]) / "agl.db")])
    assert shown.exit_code == 0
    assert "question 0" in shown.stdout or "train-0" in shown.stdout


def test_sampling_that_no_ratio_allows_is_refused_by_name(found: dict[str, Any]) -> None:
    code = """
import sys
from types import SimpleNamespace as N
from agentlightning_verl.agent_loop import LightningAgentLoopManager, read_config
from omegaconf import OmegaConf
for rollout in ({"top_p": 0.9, "top_k": -1}, {"top_p": 1.0, "top_k": 20}):
    try:
        LightningAgentLoopManager.create(OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}}), None)
    except Exception as error:
        print(type(error).__name__, error)
for path in (None, "/no/such.toml"):
    try:
        read_config(path)
    except Exception as error:
        print(type(error).__name__, error)
"""
    ran = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=100, check=True)
    lines = [line for line in ran.stdout.splitlines() if "Error" in line or "Setting" in line]
    assert "UnsupportedSetting actor_rollout_ref.rollout samples with top_p 0.9" in lines[0]
    assert "top_k 20" in lines[1]
    assert "agent_loop_config_path is empty" in lines[2]
    assert "/no/such.toml: The agent's configuration cannot be read" in lines[3]
