"""Whole runs that learn from a teacher: on an engine of ours, and on a server that scores given tokens."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from letters import TASKS, ask, score
from starlette.responses import JSONResponse

import agentlightning as agl
from agentlightning.algorithms.lightning import LightningRL
from agentlightning.config.schema import build_config, load_config
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, EngineError, UnsupportedSetting
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.teacher import check_teacher
from agentlightning.training.train import train_job
from agentlightning_torch.testing import tiny_model
from agentlightning_upstream import prompt_logprobs
from teacher_server import TeacherServer, teacher_server
from world import StopAfter


async def unscored(task: Any, llm: agl.LLM) -> None:
    """Two turns of one conversation, and no reward."""
    messages: list[Any] = [{"role": "user", "content": task["text"]}]
    for _ in range(2):
        messages += [{"role": "assistant", "content": await ask(llm, messages)}, {"role": "user", "content": "more"}]


async def scored(task: Any, llm: agl.LLM) -> float:
    return score(await ask(llm, [{"role": "user", "content": task["text"]}]))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("teacher") / "larger", seed=7, hidden=96, layers=3).path


@pytest.fixture(scope="module")
def server(teacher: str) -> Any:
    with teacher_server(teacher) as server:
        yield server


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "folder": folder, "steps": 2, "tasks_per_step": 2, "algorithm": {"name": "distillation", "group_size": 4},
        "trainer": {"name": "torch", "lr": 1e-3}, "engine": {"name": "torch"}, "sampling": {"max_tokens": 8}, "progress": False, **more,
    }  # fmt: skip


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.folder) if row["step"]]


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("seconds", "tokens_per_second"))} for row in rows(run)]


def on_server(server: TeacherServer, **engine: Any) -> dict[str, Any]:
    return {"model": "larger", "engine": {"name": "upstream", "url": server.url, **engine}}


def test_the_divergence_from_the_teacher_falls_without_any_reward(model: str, teacher: str, tmp_path: Path) -> None:
    run = agl.train(unscored, tasks=TASKS, **settings(model, tmp_path, steps=16, tasks_per_step=6, teacher={"model": teacher}))
    divergence = [row["teacher_kl"] for row in rows(run)]
    assert sum(divergence[-3:]) < 0.8 * sum(divergence[:3]), divergence
    assert all(row["trained_tokens"] == row["sampled_tokens"] > 0 and row["seconds.teacher"] > 0 for row in rows(run))


@pytest.mark.parametrize("trained", ["lora", "top:1"])
def test_a_teacher_adds_to_rewards_whatever_is_trained(model: str, teacher: str, tmp_path: Path, trained: str) -> None:
    more = {"trainer": {"name": "torch", "lr": 1e-3, "train": trained}, "algorithm": {"name": "rloo", "group_size": 4, "teacher_coef": 0.1}}
    run = agl.train(scored, tasks=TASKS, **settings(model, tmp_path, teacher={"model": teacher}, **more))
    assert all(row["teacher_kl"] > 0 and "reward" in row for row in rows(run))
    assert rows(run)[-1]["policy_version"] == 2


def test_a_teacher_gives_signal_where_all_rewards_are_equal(model: str, teacher: str, tmp_path: Path) -> None:
    async def constant(task: Any, llm: agl.LLM) -> float:
        await scored(task, llm)
        return 1.0

    more = {"algorithm": {"name": "grpo", "group_size": 2, "teacher_coef": 0.1}, "steps": 1}
    assert rows(agl.train(constant, tasks=TASKS, **settings(model, tmp_path, teacher={"model": teacher}, **more)))[0]["trained_tokens"] > 0


def test_without_a_teacher_there_is_no_such_metric(model: str, tmp_path: Path) -> None:
    run = agl.train(scored, tasks=TASKS, **settings(model, tmp_path, steps=1, algorithm={"name": "rloo", "group_size": 4}))
    assert "teacher_kl" not in rows(run)[0]


def test_a_resumed_run_does_what_one_does_that_was_not_stopped(model: str, teacher: str, tmp_path: Path) -> None:
    exact = settings(
        model, tmp_path, steps=4, teacher={"model": teacher}, engine={"name": "torch", "max_batch": 1}, runner={"concurrency": 1}
    )
    whole = agl.train(unscored, tasks=TASKS, **exact)
    stopper = StopAfter(2)
    job = make_job(unscored, tasks=TASKS, **{key: value for key, value in exact.items() if key != "progress"})
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))  # type: ignore[arg-type]
    assert half.stopped
    resumed = agl.train(unscored, tasks=TASKS, resume=half.folder, **exact)
    assert measured(resumed) == measured(whole)
    assert tomllib.loads((whole.folder / "config.toml").read_text())["teacher"]["model"] == teacher


def test_a_server_teaches_as_the_same_model_here_does(model: str, teacher: str, server: TeacherServer, tmp_path: Path) -> None:
    exact = {"engine": {"name": "torch", "max_batch": 1}, "runner": {"concurrency": 1}}
    here = agl.train(unscored, tasks=TASKS, **settings(model, tmp_path, teacher={"model": teacher}, **exact))
    server.bodies.clear()
    server.broken += [JSONResponse({"error": "busy"}, 503)]
    there = agl.train(unscored, tasks=TASKS, **settings(model, tmp_path, teacher=on_server(server), **exact))
    for ours, theirs in zip(rows(here), rows(there), strict=True):
        assert ours["teacher_kl"] == pytest.approx(theirs["teacher_kl"], abs=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    assert len(server.bodies) == 2 * 8 + 1, "one request for each conversation, though it has two turns, and one more for the busy server"
    assert {body["model"] for body in server.bodies} == {"larger"}


def test_the_key_of_a_server_is_sent_and_kept_nowhere(
    model: str, server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-a-secret-of-the-teacher")
    run = agl.train(unscored, tasks=TASKS, **settings(model, tmp_path, steps=1, teacher=on_server(server, key_env="TEACHER_KEY")))
    assert "Bearer sk-a-secret-of-the-teacher" in server.keys
    kept = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert b"sk-a-secret-of-the-teacher" not in kept
    assert b"TEACHER_KEY" in kept


def test_a_server_that_fails_or_scores_nothing_ends_the_run_with_its_words(
    model: str, server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "FIRST_PAUSE", 0.01)
    arguments = settings(model, tmp_path, steps=1, tasks_per_step=1, algorithm="distillation", teacher=on_server(server))
    answers = {
        r"answered 400: .*no such model.*Check teacher\.engine and teacher\.model": [JSONResponse({"error": "no such model"}, 400)],
        r"answered 503: .*, 5 times\. Check the server of the teacher": [JSONResponse({"error": "busy"}, 503)] * 5,
        r"no prompt_logprobs for \d+ tokens, so it cannot be a teacher": [JSONResponse({"choices": [{"text": "a"}]})],
        r"gave no finite log-probability to \d+ of \d+ tokens": [],
    }
    for message, broken in answers.items():
        server.broken[:] = broken
        if not broken:
            monkeypatch.setattr(prompt_logprobs, "_prompt_logprobs", _nothing)
        with pytest.raises(EngineError, match=message):
            agl.train(unscored, tasks=TASKS, **arguments)


async def _nothing(connection: Any, model: str, ids: list[int]) -> Any:
    import numpy as np

    return np.full(len(ids), -np.inf)


def with_tokenizer(folder: Path, change: Any) -> str:
    """A model whose tokenizer.json was changed."""
    files = tiny_model(folder, seed=7)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return files.path


def swapped(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def marked(content: Any) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "id": 3, "content": "!"})


def prepended(content: Any) -> None:
    content["normalizer"] = {"type": "Lowercase"}


DIFFERENT = {
    "token 'a' is number 67 in the student and number 68 in the teacher": swapped,
    "special token '!' is missing in the student and number 3 in the teacher": marked,
    "they split the text 'Größe 12345.67 naïve 你好,'... differently": prepended,
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_a_teacher_with_another_tokenizer_is_refused_by_name(model: str, tmp_path: Path, difference: str) -> None:
    other = with_tokenizer(tmp_path / "other", DIFFERENT[difference])
    with pytest.raises(ConfigError) as error:
        agl.train(unscored, tasks=TASKS, **settings(model, tmp_path / "runs", teacher={"model": other}))
    assert str(error.value).startswith(f"Teacher 'other' has another tokenizer than 'tiny': {difference}. Use a teacher of the same family")
    assert not (tmp_path / "runs").exists(), "before the run begins"


def rare(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["Q"], vocabulary["Z"] = vocabulary["Z"], vocabulary["Q"]


def as_before(content: Any) -> None:
    """Changes nothing."""


SERVED = {"they split the text": swapped, "their special tokens differ": as_before, "their vocabularies differ": rare}


@pytest.mark.parametrize("difference", SERVED)
def test_a_server_with_another_tokenizer_is_refused_by_name(model: str, tmp_path: Path, difference: str) -> None:
    other = with_tokenizer(tmp_path / "other", SERVED[difference])
    for file in (tmp_path / "other").glob("tokenizer*") if "special" in difference else ():
        file.write_text(file.read_text().replace("<|endoftext|>", "<|end|>"))
    with teacher_server(other) as server, pytest.raises(ConfigError, match=f"'larger' has another tokenizer than 'tiny': {difference}"):
        agl.train(unscored, tasks=TASKS, **settings(model, tmp_path / "runs", teacher=on_server(server)))


def test_the_same_tokenizer_written_otherwise_is_accepted(model: str, tmp_path: Path) -> None:
    def renamed(content: Any) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 4096, "strategy": "LongestFirst", "stride": 0}

    other = with_tokenizer(tmp_path / "other", renamed)
    from agentlightning.training.teacher import TeacherPlan

    check_teacher(TeacherPlan(ModelFiles("other", other), None, None), ModelFiles("student", model))


WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    r"algorithm\.teacher_coef is set, but there is no \[teacher\]": (ConfigError, {}),
    r"\[teacher\] is set, but nothing asks it": (ConfigError, {"algorithm": "grpo", "teacher": {"model": "MODEL"}}),
    r"learns from a teacher alone, and algorithm\.teacher_coef is 0": (
        ConfigError,
        {"algorithm": {"name": "lightning", "advantage": "none"}},
    ),
    r"sampling\.temperature is 0\.7, and the server of the teacher": (
        UnsupportedSetting,
        {"sampling": {"temperature": 0.7}, "teacher": {"model": "x", "engine": {"name": "upstream", "url": "http://127.0.0.1:9/v1"}}},
    ),
    r"teacher\.engine: Unknown engine 'torhc'": (ConfigError, {"teacher": {"model": "MODEL", "engine": {"name": "torhc"}}}),
    r"teacher\.engine\.name is 3": (ConfigError, {"teacher": {"model": "MODEL", "engine": {"name": 3}}}),
    r"Unknown key 'devise' in \[teacher\.engine\]": (ConfigError, {"teacher": {"model": "MODEL", "engine": {"devise": "cpu"}}}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_setting_is_an_error_before_the_run(model: str, tmp_path: Path, message: str) -> None:
    error, more = WRONG[message]
    more = json.loads(json.dumps(more).replace("MODEL", model))
    with pytest.raises(error, match=message):
        agl.train(unscored, tasks=TASKS, **settings(model, tmp_path / "runs", **more))
    assert not (tmp_path / "runs").exists()


def test_a_server_that_is_away_is_an_engine_error(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_logprobs, "FIRST_PAUSE", 0.01)
    teacher = {"model": "x", "engine": {"name": "upstream", "url": "http://127.0.0.1:9/v1"}}
    with pytest.raises(EngineError, match=r"The server http://127\.0\.0\.1:9/tokenize cannot be reached .*, 5 times"):
        agl.train(unscored, tasks=TASKS, **settings(model, tmp_path, teacher=teacher))


def test_a_config_file_names_its_teacher_relative_to_itself(model: str, teacher: str, tmp_path: Path) -> None:
    (tmp_path / "larger").symlink_to(teacher)
    (tmp_path / "tasks.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "config.toml").write_text(
        f'agent = "json:dumps"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nalgorithm = "distillation"\n[teacher]\nmodel = "larger"\n'
    )
    config = load_config(tmp_path / "config.toml")
    assert config.teacher is not None
    assert Path(config.teacher.model) == Path(teacher).resolve()
    assert config.teacher.engine == {"name": "torch"}


def test_the_preset_is_settings_of_lightning() -> None:
    config = build_config({"agent": "a:b", "tasks": "t.jsonl", "model": "m", "algorithm": {"name": "distillation", "teacher_coef": 0.5}})
    assert config.algorithm == {
        "name": "lightning", "advantage": "none", "teacher_coef": 0.5, "loss_aggregation": "token_mean", "group_size": 1,
    }  # fmt: skip
    assert LightningRL(advantage="none", teacher_coef=1.0, group_size=1).needs.teacher
    assert LightningRL(advantage="none", teacher_coef=1.0, group_size=1).trains_unscored
