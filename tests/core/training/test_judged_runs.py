"""Whole runs whose rewards come from a judge or a function: training, evaluation, rollouts, resuming, and scoring again."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from letters import TASKS, ask
from starlette.responses import JSONResponse
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.config.schema import load_config
from agentlightning.contracts.store import StoredRollout
from agentlightning.errors import AgentError, ConfigError, JudgeError, RewardError
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.rewards import judge_endpoint
from agentlightning.training.rewards.recorded_rollout import RecordedRollout
from judge_server import JudgeServer, judge_server, score, work, works


async def silent(task: Any, llm: agl.LLM) -> None:
    """An agent that gives no reward."""
    await ask(llm, [{"role": "user", "content": task["text"]}])


async def both(task: Any, llm: agl.LLM) -> float:
    await silent(task, llm)
    return 0.25


async def named(task: Any, llm: agl.LLM) -> None:
    await silent(task, llm)
    agl.reward(0.25, name="judge")


def letters(rollout: RecordedRollout) -> float | None:
    return sum(character.isalpha() for character in rollout.answer[:8]) / 8


def half_broken(rollout: RecordedRollout) -> float:
    if rollout.task["id"] == "1":
        raise ZeroDivisionError("an empty answer")
    return letters(rollout) or 0.0


def by_letters(body: dict[str, Any]) -> str:
    return score(sum(character.isalpha() for character in work(body)[:8]) / 8 * 10)


def ranked_by_letters(body: dict[str, Any]) -> str:
    if "Rank the works" not in body["messages"][1]["content"]:
        return by_letters(body)
    count = {name[5:]: sum(map(str.isalpha, text[:8])) for name, text in works(body).items() if name != "task"}
    return json.dumps({"ranks": {name: sorted(count.values(), reverse=True).index(value) + 1 for name, value in count.items()}})


def settings(model: str, folder: Path, server: JudgeServer | None, **more: Any) -> dict[str, Any]:
    judge = {} if server is None else {"base_url": server.base_url, "model": "judge-1", "rubric": "Letters.", "retries": 1}
    judge |= more.pop("judge", {})
    return {
        "model": model, "folder": folder, "steps": 2, "tasks_per_step": 2, "algorithm": agl.LightningRL(group_size=4), "progress": False,
        "trainer": {"name": "torch", "lr": 1e-3}, "sampling": {"max_tokens": 8}, **({"reward": {"judge": judge}} if judge else {}), **more,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_endpoint, "FIRST_PAUSE", 0.01)


def stored(folder: str | Path, **which: Any) -> list[StoredRollout]:
    async def read() -> list[StoredRollout]:
        store = open_store(str(Path(folder) / "store.db"))
        states, _ = await store.list(limit=1000, **which)
        rollouts = [await store.read(state.rollout.id) for state in states]
        await store.close()
        return rollouts

    return asyncio.run(read())


def test_a_run_trains_and_evaluates_on_a_judges_scores_and_a_resumed_one_asks_nothing_twice(model: str, tmp_path: Path) -> None:
    more = {"eval_tasks": TASKS[:2], "eval": {"every": 1, "cache": False}, "checkpoints": {"every": 1}}
    more["trainer"] = {"name": "torch", "lr": 1e-12}  # the greedy replies stay the same, so the second run asks for them again
    with judge_server(by_letters) as server:
        run = agl.train(silent, tasks=TASKS, **settings(model, tmp_path, server, steps=1, models=("judge-*",), **more))
        first, asked = read_metrics(run.folder), len(server.bodies)
        agl.train(silent, tasks=TASKS, resume=run.folder, **settings(model, tmp_path, server, models=("judge-*",), **more))
        again = read_metrics(run.folder)
    assert sum(row.get("judge.asked", 0) for row in first) == asked <= 16
    assert sum(row.get("judge.asked", 0) for row in again) == len(server.bodies)
    assert again[2]["judge.cached"] >= 2, "the greedy evaluations of steps 1 and 2"
    assert sum(row.get("judge.asked", 0) + row.get("judge.cached", 0) for row in again) == 4 + 2 * (8 + 4)
    for state, (records,) in stored(run.folder):
        (reward,) = records.rewards
        assert (reward.name, reward.source) == ("judge", "judge:judge-1")
        assert reward.value == letters(RecordedRollout(state, records))
        assert len(records.calls) == 1, "the judge's own requests belong to no rollout"
        assert [span.name for span in records.spans if span.kind == "note"] == ["judge:judge-1: because"]
    values = [records.rewards[0].value for state, (records,) in stored(run.folder, mode="train", step=0)]
    assert again[1]["reward"] == pytest.approx(sum(values) / 8)
    assert again[1]["unscored"] == 0
    assert len((run.folder / "judge.jsonl").read_text().splitlines()) == len({json.dumps(body["messages"]) for body in server.bodies})
    assert len(server.bodies) == len({json.dumps(body["messages"]) for body in server.bodies})


def test_a_function_scores_an_agent_that_returns_nothing_and_its_error_is_no_zero(model: str, tmp_path: Path) -> None:
    run = agl.train(silent, tasks=TASKS[:2], **settings(model, tmp_path, None, steps=1, reward="test_judged_runs:half_broken"))
    (row,) = read_metrics(run.folder)
    assert row["unscored"] == 4
    for state, (records,) in stored(run.folder):
        notes = [span.name for span in records.spans if span.kind == "note"]
        if state.rollout.task.id == "1":
            assert records.rewards == ()
            assert notes == [
                "test_judged_runs:half_broken: not scored: test_judged_runs:half_broken raised ZeroDivisionError: an empty answer"
            ]
        else:
            (reward,) = records.rewards
            assert (reward.name, reward.value) == ("half_broken", letters(RecordedRollout(state, records)))
    with pytest.raises(ConfigError, match="'gone'"):
        agl.train(silent, tasks=TASKS, **settings(model, tmp_path, None, reward="test_judged_runs:gone"))


def test_a_relative_judge_ranks_training_groups_and_scores_evaluations(model: str, tmp_path: Path) -> None:
    more = {"eval_tasks": TASKS[:2], "eval": {"every": 0}, "judge": {"relative": True}}
    with judge_server(ranked_by_letters) as server:
        run = agl.train(silent, tasks=TASKS, **settings(model, tmp_path, server, steps=1, **more))
    rows = read_metrics(run.folder)
    assert rows[1]["reward"] == pytest.approx(0.5), "ranks say nothing across groups"
    groups: dict[str, list[tuple[int, float]]] = {}
    for state, (records,) in stored(run.folder, mode="train"):
        count = round(8 * (letters(RecordedRollout(state, records)) or 0))
        groups.setdefault(state.rollout.group or "", []).append((count, records.rewards[0].value))
    assert [len(group) for group in groups.values()] == [4, 4]
    for group in groups.values():
        for count, value in group:
            beaten = sum(other < count for other, _ in group) + (sum(other == count for other, _ in group) - 1) / 2
            assert value == pytest.approx(beaten / 3)
    evaluated = [
        (letters(RecordedRollout(state, records)), records.rewards[0].value) for state, (records,) in stored(run.folder, mode="eval")
    ]
    assert all(value == expected for value, expected in evaluated)


def test_a_judge_that_stays_away_stops_the_run_and_the_resumed_run_continues(model: str, tmp_path: Path) -> None:
    def fails_in_step_2(body: dict[str, Any]) -> Any:
        return by_letters(body) if len(server.bodies) <= 8 else JSONResponse({"error": "no credit"}, 402)

    with judge_server(fails_in_step_2) as server:
        with pytest.raises(JudgeError, match=r"HTTP 402: .*no credit"):
            agl.train(silent, tasks=TASKS, **settings(model, tmp_path, server, steps=3, checkpoints={"every": 1}))
        server.answer = by_letters
        (folder,) = tmp_path.glob("*-run")
        assert [row["step"] for row in read_metrics(folder)] in ([], [1])
        run = agl.train(silent, tasks=TASKS, resume=folder, **settings(model, tmp_path, server, steps=3))
    assert [row["step"] for row in read_metrics(run.folder)] == [1, 2, 3]
    assert all(row["unscored"] == 0 for row in read_metrics(run.folder))


def test_a_judge_that_never_gives_a_score_stops_the_run_at_the_first_step(model: str, tmp_path: Path) -> None:
    with judge_server(lambda body: "lovely") as server:
        with pytest.raises(
            AgentError, match=r"No rollout in the first step received a reward\. The first one: The judge 'judge-1' gave no"
        ):
            agl.train(silent, tasks=TASKS, **settings(model, tmp_path, server))


@pytest.mark.parametrize(
    ("agent", "message"), [(both, "The agent returned 0.25 .*reward_weights"), (named, "has a reward 'judge' already")]
)
def test_rewards_of_agent_and_judge_that_contradict_are_an_error_before_the_judge_is_asked(
    model: str, tmp_path: Path, agent: Any, message: str
) -> None:
    with judge_server(by_letters) as server:
        with pytest.raises(RewardError, match=message):
            agl.train(agent, tasks=TASKS, **settings(model, tmp_path, server))
        assert server.bodies == []


def test_rewards_of_agent_and_judge_are_weighed_together(model: str, tmp_path: Path) -> None:
    with judge_server(by_letters) as server:
        weights = {"reward_weights": {"return": 2.0, "judge": 1.0}}
        run = agl.train(both, tasks=TASKS, **settings(model, tmp_path, server, steps=1, **weights))
    values = [letters(RecordedRollout(state, records)) or 0 for state, (records,) in stored(run.folder)]
    assert read_metrics(run.folder)[0]["reward"] == pytest.approx(0.5 + sum(values) / len(values))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"algorithm": {"advantage": "reinforce", "group_size": 1}}, "relative is true, but algorithm.group_size is 1"),
        ({"sampler": "curriculum"}, 'relative is true, but sampler = "curriculum"'),
        ({"algorithm": "gepa"}, "relative is true, but algorithm 'gepa' compares the rewards of different prompts"),
        ({"collection": {"filter": {"name": "difficulty", "low": 0.1, "high": 0.9}}}, "difficulty"),
    ],
)
def test_a_relative_judge_refuses_by_name_what_compares_tasks(model: str, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with judge_server(by_letters) as server, pytest.raises(ConfigError, match=message):
        agl.train(silent, tasks=TASKS, **settings(model, tmp_path, server, judge={"relative": True}, **more))
    assert not list(tmp_path.glob("*-run"))


def test_a_replay_without_an_agent_refuses_a_judge(model: str, tmp_path: Path) -> None:
    with (
        judge_server(by_letters) as server,
        pytest.raises(ConfigError, match=r"a replay's rollouts keep the rewards of their store.*agl score"),
    ):
        agl.train(replay={"store": str(tmp_path / "x.db")}, **settings(model, tmp_path, server))


# --- commands ---

PROGRAM = """
import json, os, sys, urllib.request
task = json.load(sys.stdin)
body = {"model": os.environ["AGL_MODEL"], "messages": [{"role": "user", "content": task["text"]}], "max_tokens": 8}
headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json"}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(), headers)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"])
"""


@pytest.fixture
def judged(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, its tasks, a rubric, and a config whose judge waits for an address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({**task, "good": task["text"].isalpha()}) + "\n" for task in TASKS))
    (tmp_path / "rubric.md").write_text("Letters.")
    (tmp_path / "config.toml").write_text(
        f'command = "{sys.executable} program.py"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nfolder = "runs"\n'
        '[sampling]\nmax_tokens = 8\n[reward.judge]\nbase_url = "ADDRESS"\nmodel = "judge-1"\nrubric = "rubric.md"\nretries = 0\n'
    )
    return tmp_path


def agl_command(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def test_a_program_without_a_reward_is_judged_and_scored_again_against_labels(judged: Path) -> None:
    config = judged / "config.toml"
    with judge_server(by_letters) as server:
        config.write_text(config.read_text().replace("ADDRESS", server.base_url))
        assert load_config(config).reward.judge.rubric == str(judged / "rubric.md")  # type: ignore[union-attr]
        told = agl_command("rollout", "config.toml")
        assert "6 rollouts in" in told
        assert "6 scored" in told
        asked = int(re.findall(r"judge: (\d) asked", told)[0])
        again = agl_command("score", "latest", "--reward", "config.toml", "--labels", "task.good", "--dry-run")
        assert all("good" in body["messages"][1]["content"] for body in server.bodies[:asked])
        assert not any("good" in body["messages"][1]["content"] for body in server.bodies[asked:]), "the judge does not see the label"
        requests = len(server.bodies)
        assert "The judge was asked 0 times. 6 scores were known." in agl_command("score", "latest", "--reward", "config.toml", "--dry-run")
        assert len(server.bodies) == requests, "the run's cache answers"
        assert "0 of 6 rollouts change." in again
        assert "agreement with task.good: 6 rollouts of 6 tasks" in again
        assert re.search(r"accuracy +0\.\d+ +0\.\d+ to [01]\.\d+", again)
        assert "Cohen's kappa" in again
        assert "No rollout has the label" not in again
        none = agl_command("score", "latest", "--reward", "config.toml", "--labels", "reward", "--dry-run")
        assert "No rollout has the label 'reward'. Labels here: judge, task.good." in none
        (folder,) = judged.glob("runs/*-rollout")
        shutil.copy(folder / "store.db", judged / "alone.db")
        refused = agl_command("score", "alone.db", "--reward", "config.toml", "--labels", "judge")
        assert "The new rewards would replace the labels 'judge'. Add --name NAME" in refused
        server.answer = lambda body: score(10)
        for own in ("return", "reward"):
            refused = agl_command("score", "alone.db", "--reward", "config.toml", "--labels", own)
            assert f"The new rewards would replace the labels '{own}'." in refused
        told = agl_command("score", "alone.db", "--reward", "config.toml", "--name", "second", "--labels", "judge")
        assert "Recorded 6 rewards." in told
        assert "undefined" in told
        told = agl_command("score", "alone.db", "--reward", "config.toml")
        assert "The judge was asked 0 times. 6 scores were known." in told, "the cache of a store that is no run"
    assert len(list(judged.glob("cache/judge/*.jsonl"))) == 1
    assert "6 scored" in agl_command("show", "latest")


def test_a_relative_judge_and_the_reward_of_a_running_command_do_not_score_again(judged: Path) -> None:
    config = judged / "config.toml"
    config.write_text(config.read_text().replace("ADDRESS", "http://127.0.0.1:9/v1"))
    asyncio.run(open_store(str(judged / "empty.db")).close())
    relative = config.read_text() + "relative = true\n"
    (judged / "relative.toml").write_text(relative)
    refused = agl_command("score", "empty.db", "--reward", "relative.toml")
    assert "reward.judge.relative is true, but `agl score` scores rollouts one by one" in refused
    (judged / "plain.toml").write_text('reward = "exit_code"\n')
    assert "reward is 'exit_code', which a running command gives" in agl_command("score", "empty.db", "--reward", "plain.toml")
    (judged / "typo.toml").write_text(relative.replace("rubric =", "rubrik ="))
    with pytest.raises(ConfigError, match=r"Unknown key 'rubrik' in \[reward\.judge\]\. Did you mean 'rubric'"):
        load_config(judged / "typo.toml")
