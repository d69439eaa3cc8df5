"""What the verl trainer says and sends before verl is there: settings, messages, rows."""

from __future__ import annotations

import socket
from threading import Thread
from typing import Any

import numpy as np
import pytest
from verl_world import batch_of

from agentlightning.config.parts import Part
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning_verl.message import Message, receive, send
from agentlightning_verl.rows import rows_of
from agentlightning_verl.settings import VerlSettings
from agentlightning_verl.trainer import VerlTrainer


def test_a_message_arrives_as_it_was_sent_and_the_end_is_told() -> None:
    ours, theirs = socket.socketpair()
    arrays = {"ids": np.arange(300_000), "empty": np.zeros(0, np.float32), "mask": np.array([True, False])}
    sender = Thread(target=send, args=(ours, Message("update", {"lr": 0.5, "loss": {"clip_low": None}}, arrays)))
    sender.start()
    found = receive(theirs)
    sender.join()
    assert found is not None
    assert (found.kind, found.facts) == ("update", {"lr": 0.5, "loss": {"clip_low": None}})
    assert found.arrays.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(found.arrays[name], value)
    ours.sendall(b"\x10\0\0")  # it dies in the middle of one
    ours.close()
    assert receive(theirs) is None
    theirs.close()


def test_a_message_that_holds_a_pickle_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    send(ours, Message("update", {}, {"bad": np.array([object()], dtype=object)}))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        receive(theirs)
    ours.close()
    theirs.close()


def test_rows_have_every_trained_token_once_one_place_before_it() -> None:
    batch = batch_of(3)
    rows = rows_of(batch)
    trained = rows.token[rows.token >= 0]
    assert sorted(trained) == np.flatnonzero(batch.trained).tolist()
    starts = np.append(0, np.cumsum(rows.lengths))[:-1]
    for place, token in enumerate(rows.token):
        if token >= 0:
            assert rows.ids[place + 1] == batch.token_ids[token]
            assert rows.ids[place] == batch.token_ids[batch.parent[token]]
    for start, end in zip(starts, np.append(starts[1:], len(rows.ids)), strict=True):
        assert rows.token[end - 1] == -1
        assert rows.ids[start] == batch.token_ids[0]
    arrays = rows.arrays(batch, 2.0, None, 0)
    assert arrays["weight"].sum() == pytest.approx(2 * batch.weight.sum())
    assert "old_logprobs" not in arrays
    assert np.isfinite(arrays["rollout_logprobs"]).all()


def test_rows_of_some_rollouts_train_those_alone() -> None:
    batch = batch_of(3)
    parts = [rows_of(batch, [0, 2]), rows_of(batch, [1, 3, 4])]
    assert sorted(np.concatenate([part.token[part.token >= 0] for part in parts])) == np.flatnonzero(batch.trained).tolist()


def test_two_temperatures_in_one_conversation_are_refused() -> None:
    batch = batch_of(3)
    temperature = batch.temperature.copy()
    temperature[np.flatnonzero(batch.trained)[0]] = 0.5
    object.__setattr__(batch, "temperature", temperature)
    with pytest.raises(UnsupportedSetting, match=r"takes one temperature for each conversation, and one of this batch has 0\.5, 1\.0"):
        rows_of(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "trainer.workers is 0. Use a whole number of at least 1."),
        ({"nodes": 2}, "but no Ray cluster is named"),
        ({"train": "top:8"}, "'full' or 'lora' (trainer 'torch' has 'top:N')"),
        ({"lr": 3.0}, "trainer.lr is 3.0"),
        ({"betas": (0.9,)}, "a list of 2, each a number of at least 0 and below 1"),
        ({"schedule": "step"}, "'constant', 'linear' or 'cosine'"),
        ({"device": "tpu"}, "'auto', 'cpu' or 'cuda'"),
        (
            {"schedule": "linear", "warmup_steps": 5, "total_steps": 5},
            "trainer.total_steps is 5, but trainer.warmup_steps is 5. Schedule 'linear' needs more total steps than warm-up steps.",
        ),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VerlSettings(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["adv_estimator", "critic", "ref", "kl_loss_coef", "entropy_coeff", "loss_agg_mode"])
def test_a_setting_of_verls_that_would_be_ignored_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown key '{key}' in .trainer."):
        Part.parse("trainers", {"name": "verl", key: 1}, "trainer").make()


async def test_a_python_without_verl_is_named_with_the_way_out(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a program\. Run: pip install"):
        await VerlTrainer.create(ModelFiles("m", "m"), VerlSettings(python="/no/python"), {})
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'PackageNotFoundError: verl' >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"has no verl \(PackageNotFoundError: verl\)\. Run: pip install 'agentlightning\[torch,verl\]'"):
        await VerlTrainer.create(ModelFiles("m", "m"), VerlSettings(python=str(bare)), {})
    with pytest.raises(ConfigError, match="needs total_steps"):
        await VerlTrainer.create(ModelFiles("m", "m"), VerlSettings(schedule="cosine"), {})
