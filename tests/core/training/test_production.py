"""The loop of a deployed agent: it is served, acts, is rewarded later, and a run trains on that. All parts are the real ones."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from production_world import TASKS, act, deployed, give_rewards, produce, solve

import agentlightning as agl
from agentlightning.config.schema import load_config
from agentlightning.errors import NotFound, RewardError, StoreError
from agentlightning.page.library import Library
from agentlightning.page.rollouts import Filters, page
from agentlightning.page.rows import read_rollout
from agentlightning.page.rows import row as line_of
from agentlightning.records.source import find_records
from agentlightning.stores.common import open_store
from agentlightning.training.dry_run import dry_run
from agentlightning.training.metrics import read_metrics
from agentlightning.training.production.opening import trained_before
from agentlightning.training.production.replay import ProductionReplay
from agentlightning.training.run_folder import RunFolder
from agentlightning_torch.testing import tiny_model

Produced = tuple[str, Path, list[tuple[str, float]]]
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory) -> Produced:
    """A model, the store that its agent filled (each of six tasks 16 times, no reward yet), and what each attempt is worth."""
    folder = tmp_path_factory.mktemp("production")
    tiny_model(folder / "tiny")
    store = f"sqlite:{folder / 'agl.db'}"
    with deployed(store, model=str(folder / "tiny")) as base_url:
        worth = produce(store, base_url, 16)
    return str(folder / "tiny"), folder / "agl.db", worth


@pytest.fixture
def store(produced: Produced, tmp_path: Path) -> str:
    """A copy of the store."""
    shutil.copy(produced[1], tmp_path / "agl.db")
    return f"sqlite:{tmp_path / 'agl.db'}"


def settings(produced: Produced, store: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "replay": {"store": store},
        "model": produced[0],
        "folder": folder,
        "steps": 50,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=8),
        "trainer": {"name": "torch", "lr": 3e-3},
        "progress": False,
        **more,
    }


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return read_metrics(run.folder)


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows(run)]


def contents(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        tables = ("rollouts", "attempts", "records", "policies")
        return [database.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


class Hears:
    """Progress that keeps what it is told, and does something when a step has ended, or something is said."""

    def __init__(self, then: Any = lambda row: None, at: Any = lambda text: None) -> None:
        self.then, self.at, self.messages = then, at, list[str]()

    def step(self, row: Any) -> None:
        self.then(row)

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.at(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_run_on_what_production_left_raises_the_held_out_reward(produced: Produced, store: str, tmp_path: Path) -> None:
    give_rewards(store, produced[2])
    before = contents(tmp_path / "agl.db")
    hears = Hears()
    eval = {"every": 0, "samples": 12, "greedy": False}
    algorithm = agl.LightningRL(group_size=8, loss={"name": "ppo_clip", "epochs": 4, "minibatches": 2, "correction": "tis"})
    run = agl.train(solve, eval_tasks=TASKS, **settings(produced, store, tmp_path, eval=eval, progress=hears, algorithm=algorithm))
    eval_metrics = run.result["eval"]["sampled"]
    assert eval_metrics["after"] > eval_metrics["before"] + 0.1
    *_, last = rows(run)
    assert (last["step"], run.result["steps"], run.result["finished"]) == (6, 6, False), "96 rollouts are six steps of 16"
    assert "The store has nothing more to train on after step 6." in hears.messages
    assert contents(tmp_path / "agl.db") == before, "the store is only read"


def test_every_rollout_is_trained_once_and_its_tokens_are_accounted_for(produced: Produced, store: str, tmp_path: Path) -> None:
    """The first 40 attempts are scored, six or seven of each task: six whole groups, then six of two or three rollouts."""
    give_rewards(store, produced[2][:40])
    hears = Hears()
    run = agl.train(**settings(produced, store, tmp_path, algorithm=agl.LightningRL(group_size=4), progress=hears))
    folder = RunFolder.open(run.folder)
    steps = [folder.read_batch(row["step"]) for row in rows(run)]
    taken = [rollout_id for step in steps for rollout_id in step]
    assert len(taken) == len(set(taken)) == 40
    assert sum(row["rollouts"] for row in rows(run)) == 40
    for step, row in zip(steps, rows(run), strict=True):
        assert sum(each.trained + sum(each.excluded.values()) for each in step.values()) == row["sampled_tokens"]
        assert sum(each.trained for each in step.values()) == row["trained_tokens"] > 0
    assert rows(run)[-1]["replay.unscored"] == 56
    assert "The store has nothing more to train on after step 6. Left there: 56 without a reward so far." in hears.messages


def test_what_lies_between_old_replies_and_the_trained_policy_has_its_own_name_and_raises_no_alarm(
    produced: Produced, store: str, tmp_path: Path
) -> None:
    give_rewards(store, produced[2])
    run = agl.train(**settings(produced, store, tmp_path, steps=2))
    first, second = rows(run)
    assert first["off_policy_abs"] < 1e-5, "the policy that was served is the one that the run begins with"
    assert second["off_policy_abs"] > 0.05
    assert not [key for row in rows(run) for key in row if key.startswith(("alarm", "mismatch_", "version_gap", "tokens_per_second"))]
    other = tiny_model(tmp_path / "other", seed=1)
    hears = Hears()
    run = agl.train(**settings(produced, store, tmp_path, model=other.path, steps=1, progress=hears))
    assert rows(run)[0]["off_policy_abs"] > 0.05
    assert any("another policy than the trained one sampled these replies" in each for each in hears.messages)


def test_a_reward_that_comes_after_a_step_is_trained_in_a_later_one(
    produced: Produced, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProductionReplay, "SOONEST", 0.05)
    monkeypatch.setattr(ProductionReplay, "AGE", 0.0)
    worth = produced[2]
    give_rewards(store, worth[:48])

    def later(text: str) -> None:
        if text.startswith("Waiting"):
            agl.reward_later(worth[0][0], 99.0, store=store)  # of one that was trained: it changes nothing any more
            give_rewards(store, worth[48:64])

    hears = Hears(at=later)
    run = agl.train(
        **settings(
            produced, store, tmp_path, replay={"store": store, "wait": True}, steps=4, progress=hears,
            algorithm=agl.LightningRL(group_size=8, advantage="reinforce_pp"),
        )
    )  # fmt: skip
    assert run.result["finished"]
    assert [row["rollouts"] for row in rows(run)] == [16] * 4
    assert "Waiting for production: 0 of 16 rollouts have ended and are scored; 48 have no reward so far." in hears.messages
    taken = [set(RunFolder.open(run.folder).read_batch(step)) for step in range(1, 5)]
    assert len(set.union(*taken)) == 64
    assert rows(run)[3]["reward"] <= 1


def test_a_run_that_waits_is_stopped_like_any_other_and_goes_on(produced: Produced, store: str, tmp_path: Path) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    give_rewards(store, produced[2][:48])
    arguments = settings(produced, store, tmp_path, replay={"store": store, "wait": True}, steps=4)
    arguments["algorithm"] = agl.LightningRL(group_size=8, advantage="reinforce_pp")
    del arguments["progress"]
    stop = asyncio.Event()
    half = asyncio.run(train_job(make_job(None, **arguments), progress=Hears(at=lambda text: stop.set()), resume=None, stop=stop))
    assert half.stopped
    assert half.result["steps"] == 3
    give_rewards(store, produced[2][48:])
    run = agl.train(resume=half.folder, progress=False, **arguments)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    assert len(RunFolder.open(run.folder).read_batches()) == 64


def test_a_step_during_which_the_run_is_stopped_is_kept(produced: Produced, store: str, tmp_path: Path) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    give_rewards(store, produced[2])
    arguments = settings(produced, store, tmp_path, steps=2, algorithm=agl.LightningRL(group_size=8, advantage="reinforce_pp"))
    whole = agl.train(**arguments)
    del arguments["progress"]
    stop = asyncio.Event()

    class StopsInTraining(Hears):
        def phase(self, name: str, part: float | None = None) -> None:
            if name == "training":
                stop.set()

    half = asyncio.run(train_job(make_job(None, **arguments), progress=StopsInTraining(), resume=None, stop=stop))
    assert half.stopped
    assert RunFolder.open(half.folder).steps() == [1]
    resumed = agl.train(resume=half.folder, progress=False, **arguments)
    assert measured(resumed) == measured(whole)


def test_a_run_that_ended_early_goes_on_when_more_has_come(produced: Produced, store: str, tmp_path: Path) -> None:
    give_rewards(store, produced[2][:48])
    arguments = settings(produced, store, tmp_path, steps=6, tasks_per_step=3)
    first = agl.train(**arguments)
    assert (first.stopped, first.result["steps"]) == (False, 2)
    again = agl.train(resume=first.folder, **arguments)
    assert again.result["steps"] == 2, "nothing has come, and it ends in good order"
    give_rewards(store, produced[2][48:])
    more = agl.train(resume=first.folder, **arguments)
    assert more.result["steps"] == 4
    assert len(RunFolder.open(more.folder).read_batches()) == 96


@pytest.mark.parametrize("advantage", ["grpo", "reinforce_pp"])
def test_a_stopped_and_resumed_run_is_bitwise_the_one_that_was_not(produced: Produced, store: str, tmp_path: Path, advantage: str) -> None:
    from agentlightning.training.job import make_job
    from agentlightning.training.train import train_job

    give_rewards(store, produced[2][10:80])
    arguments = settings(produced, store, tmp_path, tasks_per_step=3, algorithm=agl.LightningRL(group_size=5, advantage=advantage))
    whole = agl.train(**arguments)
    assert len(rows(whole)) >= 5
    del arguments["progress"]
    stop = asyncio.Event()
    job = make_job(None, **arguments)
    half = asyncio.run(train_job(job, progress=Hears(lambda row: row["step"] == 2 and stop.set()), resume=None, stop=stop))
    assert [row["step"] for row in rows(half)] == [1, 2]
    resumed = agl.train(resume=half.folder, progress=False, **arguments)
    assert measured(resumed) == measured(whole)
    assert RunFolder.open(whole.folder).read_batches() == RunFolder.open(resumed.folder).read_batches()


def test_a_run_from_a_trained_checkpoint_learns_only_what_came_since(produced: Produced, store: str, tmp_path: Path) -> None:
    """Served, trained, served again with what was learned, over one store."""
    give_rewards(store, produced[2])
    first = agl.train(**settings(produced, store, tmp_path, steps=4, checkpoints={"every": 1, "last": 4}))
    trained = RunFolder.open(first.folder).read_batches().keys()
    halfway = str(RunFolder.open(first.folder).checkpoint(2))
    assert trained_before(halfway, Path()) == set(RunFolder.open(first.folder).read_batches(2))
    assert len(trained_before(halfway, Path())) == 32
    assert len(trained) == 64
    with deployed(store, run=first.folder) as base_url:
        give_rewards(store, produce(store, base_url, 1, TASKS[:2] * 8, seed=5000))
    second = agl.train(**settings(produced, store, tmp_path, model=str(first.checkpoint)))
    learned = RunFolder.open(second.folder).read_batches().keys()
    assert (len(learned), len(learned & trained)) == (48, 0), "32 of before that were not trained, and 16 new ones"
    assert [row["off_policy_abs"] > 0 for row in rows(second)] == [True] * 3
    with pytest.raises(StoreError, match="there is nothing to train on"):
        agl.train(**settings(produced, store, tmp_path, model=str(second.checkpoint)))


def test_what_a_run_found_elsewhere_is_shown_with_it(
    produced: Produced, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentlightning.cli.show import show

    give_rewards(store, produced[2])
    run = agl.train(solve, eval_tasks=TASKS[:2], **settings(produced, store, tmp_path, steps=2, eval={"greedy": False}))
    monkeypatch.setenv("COLUMNS", "200")
    show(str(run.folder))
    said = capsys.readouterr().out
    assert "32 production rollouts, mean reward" in said
    assert "4 sampled eval rollouts, mean reward" in said
    trained = sum(row["trained_tokens"] for row in rows(run)[1:])
    assert f"tokens = {trained} trained" in said
    assert "unaccounted" not in said
    show(str(run.folder), step=2)
    assert "16 production rollouts" in capsys.readouterr().out
    one = next(iter(RunFolder.open(run.folder).read_batch(2)))
    show(str(run.folder), one[-8:])
    said = capsys.readouterr().out
    assert "production, step 2" in said
    assert find_records(str(run.folder)).production == store
    found = asyncio.run(on_the_page(run.folder, one))
    (tmp_path / "agl.db").unlink()
    show(str(run.folder))
    both = capsys.readouterr()
    assert "4 sampled eval rollouts" in both.out
    assert "the replayed rollouts are not shown: replay.store: there is no store file" in both.err
    assert not (tmp_path / "agl.db").exists()
    assert (found["all"], found["step 2"]) == (["eval"] * 4 + ["production"] * 32, ["production"] * 16)
    assert found["steps"] == [2] * 16 + [1] * 16
    assert (found["one"]["step"], found["one"]["mode"], found["one"]["trained"] > 0) == (2, "production", True)


async def on_the_page(folder: Path, rollout_id: str) -> dict[str, Any]:
    """What `agl view` lists of a run with a replay."""
    library = Library(folder.parent)
    source = await library.source(folder.name)

    async def listed(**query: str) -> list[dict[str, Any]]:
        lines, cursor = list[Any](), ""
        while cursor is not None:
            answer: Any = await page(source, Filters.parse(query), cursor)
            lines += answer["rows"]
            cursor = answer["cursor"]
        return lines

    lines = await listed()
    one = line_of(await read_rollout(source, rollout_id))
    second = await listed(step="2", mode="production")
    await library.close()
    steps = [line["step"] for line in lines if line["mode"] == "production"]
    return {"all": [line["mode"] for line in lines], "step 2": [line["mode"] for line in second], "steps": steps, "one": one}


def test_a_dry_run_tries_one_group_of_the_store(produced: Produced, store: str, tmp_path: Path) -> None:
    give_rewards(store, produced[2])
    (tmp_path / "run.toml").write_text(f'model = "{produced[0]}"\nfolder = "runs"\n[replay]\nstore = "agl.db"\nwait = true\n')
    config = load_config(tmp_path / "run.toml")
    assert config.replay is not None
    assert config.replay.store == store, "a path is relative to the file"
    report = dry_run(config)
    assert (report.rollouts, report.transitions) == (8, 8)
    assert 8 <= report.sampled_tokens <= 64
    assert report.step_seconds is not None
    assert not RunFolder.all(tmp_path / "runs")


def test_what_cannot_be_trained_is_said_in_one_line_before_a_model_loads(produced: Produced, store: str, tmp_path: Path) -> None:
    empty = f"sqlite:{tmp_path / 'empty.db'}"
    asyncio.run(open_store(empty).close())
    greedy = f"sqlite:{tmp_path / 'greedy.db'}"
    with deployed(greedy, model=produced[0]) as base_url:
        attempts = [
            act(TASKS[0], 0, greedy, base_url, temperature=0),
            act(TASKS[0], 1, greedy, base_url, temperature=0),
            act(TASKS[0], 1, greedy, base_url, top_p=0.9),
            act(TASKS[1], 1, greedy, base_url),
        ]
        with pytest.raises(ValueError, match="bad"), agl.rollout(TASKS[0], store=greedy, gateway=base_url):
            raise ValueError("bad")
    for attempt, value in attempts:
        agl.reward_later(attempt, value, store=greedy)
    (tmp_path / "runs").mkdir()
    for address, says in [
        (f"sqlite:{tmp_path / 'nowhere.db'}", r"replay\.store: there is no store file '.*nowhere\.db'"),
        (empty, r"there is nothing to train on in '.*empty\.db'; its production rollouts: none has ended\. "),
        (store, r"its production rollouts: 96 without a reward so far\. "),
        (
            greedy,
            r"its production rollouts: 2 not to be trained \(sampled greedily\); .*1 not to be trained \(sampled with top_p.*"
            r"1 with no other rollout of their task to compare with",
        ),
        (greedy, "1 that ended as 'failed'"),
    ]:
        with pytest.raises(StoreError, match=says) as raised:
            agl.train(**settings(produced, address, tmp_path / "runs"))
        assert "\n" not in str(raised.value)
    assert not RunFolder.all(tmp_path / "runs")
    assert not (tmp_path / "nowhere.db").exists()


def test_a_later_reward_is_checked_and_goes_to_the_store_of_its_attempt(produced: Produced, store: str) -> None:
    attempt, _ = produced[2][0]
    given = agl.reward_later(attempt, 0.5, name="thumbs", source="a person", store=store)
    with pytest.raises(RewardError, match="Use a finite number"):
        agl.reward_later(attempt, float("nan"), store=store)
    with pytest.raises(NotFound, match="No attempt 'nobody'"):
        agl.reward_later("nobody", 1.0, store=store)

    async def kept() -> Any:
        opened = open_store(store)
        records = await opened.records(attempt)
        await opened.close()
        return records.rewards

    assert asyncio.run(kept()) == (given,)
    assert (given.name, given.value, given.source) == ("thumbs", 0.5, "a person")
