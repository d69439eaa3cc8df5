"""A run trains on the rollouts of an earlier run, from its store alone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from production_world import TASKS, solve
from safetensors.numpy import load_file

import agentlightning as agl
from agentlightning.errors import StoreError
from agentlightning.page.detail import tokens
from agentlightning.page.group import group
from agentlightning.page.library import Library
from agentlightning.page.rollouts import Filters, page
from agentlightning.page.rows import read_rollout
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.rescore import RecordedRollout, Rescored, Rescoring, rescore
from agentlightning.types import Reward
from agentlightning_torch.testing import tiny_model

TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, agl.Run]:
    """A tiny model, and a run that trained it for three steps."""
    folder = tmp_path_factory.mktemp("first")
    model = str(tiny_model(folder / "tiny").path)
    algorithm = agl.LightningRL(group_size=4)
    run = agl.train(
        solve, tasks=TASKS, model=model, folder=folder, steps=3, tasks_per_step=2, algorithm=algorithm, progress=False,
        trainer={"name": "torch", "lr": 3e-3}, sampling={"max_tokens": 8},
    )  # fmt: skip
    return model, run


def retrained(model: str, store: str, folder: Path, **more: Any) -> agl.Run:
    loss = {"name": "ppo_clip", "correction": "tis", "epochs": 2}
    settings: dict[str, Any] = {
        "replay": {"store": store, "mode": "train"}, "model": model, "folder": folder, "steps": 9, "tasks_per_step": 2, "progress": False,
        "algorithm": agl.LightningRL(group_size=4, loss=loss), "trainer": {"name": "torch", "lr": 3e-3},
    }  # fmt: skip
    return agl.train(**(settings | more))


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in read_metrics(run.folder)]


def weights(folder: str | Path) -> dict[str, Any]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_run_trains_on_another_runs_store_without_an_agent(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    model, run = first
    one, two = (retrained(model, str(run.folder), tmp_path / name) for name in ("one", "two"))
    rows = measured(one)
    assert [row["rollouts"] for row in rows] == [8, 8, 8]
    assert all(row["trained_tokens"] > 0 for row in rows)
    assert rows[0]["off_policy_abs"] < 1e-4, "the first step's replies come from the weights that this run starts with"
    assert rows[2]["off_policy_abs"] > 1e-3
    assert 0 < rows[2]["correction_mean"] <= 2.0
    assert rows[2]["correction_mean"] != rows[0]["correction_mean"], "the correction follows the distance"
    assert measured(two) == rows, "the same seed gives the same run"
    before, after, again = weights(model), weights(one.checkpoint), weights(two.checkpoint)
    assert any((before[name] != after[name]).any() for name in before)
    assert all((after[name] == again[name]).all() for name in after)


def test_the_page_shows_replayed_rollouts_with_their_groups_and_log_probabilities(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    model, run = first
    again = retrained(model, str(run.folder), tmp_path, steps=2)

    async def look() -> None:
        library = Library(tmp_path)
        source = await library.source(again.folder.name)
        lines: Any = (await page(source, Filters(), ""))["rows"]
        assert [line["step"] for line in lines] == [2] * 8 + [1] * 8
        members: Any = (await group(source, lines[0]["group"]))["rollouts"]
        assert len(members) == 4
        shown = await read_rollout(source, lines[0]["id"])
        reply = shown.attempts[0].completions[0]
        answer: Any = tokens(source, shown, reply.id)
        assert answer["trainer"]["version"] == 1
        assert len(answer["trainer"]["logprobs"]) == len(answer["logprobs"])
        await library.close()

    asyncio.run(look())


def test_a_copy_of_the_store_trains_the_same(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    from agentlightning.stores.transfer import StoreSource, copy

    model, run = first

    async def copied() -> None:
        source, target = open_store(str(run.folder / "store.db")), open_store(str(tmp_path / "copy.db"))
        await copy(StoreSource(source), target)
        await source.close()
        await target.close()

    asyncio.run(copied())
    from_source, from_copy = retrained(model, str(run.folder), tmp_path / "a"), retrained(model, str(tmp_path / "copy.db"), tmp_path / "b")
    assert measured(from_source) == measured(from_copy)


def test_weights_that_learned_from_the_rollouts_have_nothing_to_train_again(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing to train on .* its train rollouts: none has ended\. .*agl score"):
        retrained(str(first[1].checkpoint), str(first[1].folder), tmp_path)


def test_rewards_that_contradict_each_other_exclude_a_rollout(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    model, run = first
    shutil.copy(run.folder / "store.db", tmp_path / "store.db")

    async def contradict() -> None:
        store = open_store(str(tmp_path / "store.db"))
        for state in (await store.list(mode="train"))[0][:2]:
            await store.record([Reward(attempt_id=state.attempts[0].id, value=-7.0)])
        await store.close()

    asyncio.run(contradict())
    run = retrained(model, str(tmp_path / "store.db"), tmp_path)
    assert sum(row["rollouts"] for row in measured(run)) == 22
    assert measured(run)[-1]["replay.excluded"] == 2


def test_a_run_trains_on_rollouts_that_were_scored_again(first: tuple[str, agl.Run], tmp_path: Path) -> None:
    model, run = first
    shutil.copy(run.folder / "store.db", tmp_path / "store.db")

    async def digits(rollout: RecordedRollout) -> float:
        return sum(letter.isdigit() for letter in rollout.answer) / 8

    async def score_again() -> Rescored:
        store = open_store(str(tmp_path / "store.db"))
        try:
            return await rescore(store, Rescoring(function=digits, source="test:digits"), mode="train")
        finally:
            await store.close()

    rescored = asyncio.run(score_again())
    assert rescored.rollouts == 24
    rows = measured(retrained(model, str(tmp_path / "store.db"), tmp_path))
    assert rows != measured(retrained(model, str(run.folder), tmp_path / "before"))
    mean = sum(row["reward"] * row["rollouts"] for row in rows) / 24
    assert mean == pytest.approx(rescored.after[0] / 24)
