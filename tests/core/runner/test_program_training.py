"""A program trained and scored through the files and options that a user has: a configuration with `command`, and `agl rollout`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from agentlightning.cli.main import build
from agentlightning.config.schema import load_config
from agentlightning.errors import ConfigError, JoinError
from agentlightning.training.dry_run import dry_run
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_config
from agentlightning_torch.testing import tiny_model

AGENT = """
import json, os, sys
import httpx

task = json.load(sys.stdin)
answer = httpx.post(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
    json={"model": os.environ["AGL_MODEL"], "messages": [{"role": "user", "content": task["text"]}], "max_tokens": 6},
    timeout=60,
)
text = answer.raise_for_status().json()["choices"][0]["message"]["content"] or ""
print(json.dumps({"reward": sum(each.isalpha() for each in text) / 6}))
"""
TASKS = '{"id": "a", "text": "abc"}\n{"id": "b", "text": "why?"}\n{"id": "c", "text": "1+1"}\n'


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-model") / "tiny"
    tiny_model(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration in a folder that is not the current one, its program beside it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (folder / "their_agent.py").write_text(AGENT)
    (folder / "tasks.jsonl").write_text(TASKS)
    path = folder / "run.toml"
    path.write_text(
        f'command = "{sys.executable} their_agent.py"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nfolder = "../runs"\nsteps = 2\n'
        "tasks_per_step = 2\nalgorithm = { name = 'lightning', group_size = 3 }\ntrainer = { name = 'torch', lr = 1e-3 }\n"
        "runner = { concurrency = 4 }\n"
    )
    return path


def test_a_program_trains_and_its_run_resumes_from_anywhere(config: Path, tmp_path: Path) -> None:
    run = train_config(load_config(config), progress=False)
    rows = read_metrics(run.folder)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["rollouts"], row["failed"], row["unscored"]) == (6, 0, 0)
        assert row["transitions"] == row["requests.completed"] == 6
    assert any(row["trained_tokens"] for row in rows)
    kept = load_config(RunFolder.open(run.folder).config)
    assert kept.command == f"{sys.executable} their_agent.py"
    more = train_config(dataclasses.replace(kept, steps=3), resume=run.folder, progress=False)
    assert [row["step"] for row in read_metrics(more.folder)] == [1, 2, 3]


def test_a_dry_run_of_a_program_that_asks_another_model_says_what_it_should_read(config: Path) -> None:
    settings = dataclasses.replace(load_config(config), command="echo 1")
    with pytest.raises(JoinError, match="A command reads OPENAI_BASE_URL and OPENAI_API_KEY"):
        dry_run(settings)


def agl(*arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(build(), ["rollout", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_agl_rollout_runs_a_command_without_a_configuration(config: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    line = f"{sys.executable} their_agent.py"
    code, output = agl("--command", line, "--tasks", "tasks.jsonl", "--model", str(model), "--limit", "2")
    assert code == 0, output
    assert "2 rollouts in" in output
    assert "model calls: 2 completed" in output
    [folder] = RunFolder.all("runs")
    assert folder.read_result()["statuses"] == {"succeeded": 2}


def test_options_replace_what_a_configuration_says(config: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('"only"\n')
    code, output = agl(str(config), "--command", "sh -c 'exit 3'", "--reward", "exit_code", "--tasks", str(tmp_path / "one.jsonl"))
    assert code == 0, output
    assert "1 rollouts in" in output
    assert "mean reward 0.000 over 1 scored" in output
    assert "model calls: none" in output


def test_a_program_that_fails_shows_its_own_words(config: Path) -> None:
    code, output = agl(str(config), "--command", "sh -c 'echo no such luck >&2; exit 3'", "--limit", "1")
    assert code == 1
    assert "first failure: The command exited with code 3; stderr ends:\nno such luck" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "has no config file and no --command, --tasks, --model. Add them"),
        (["--command", "sh x.sh", "--model", "m"], "has no config file and no --tasks. Add them"),
        (["--command", "sh x.sh", "--tasks", "t.jsonl", "--model", "m", "--reward", "luck"], "reward is 'luck'. Use 'stdout'"),
        (["--command", "nobody-has-this", "--tasks", "t.jsonl", "--model", "m"], "the program 'nobody-has-this' is not found on PATH"),
        (["--command", "sh x.sh", "--tasks", "t.jsonl", "--model", "no-such-model"], "Unknown model 'no-such-model'"),
    ],
)
def test_what_is_missing_or_wrong_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text("1\n")
    code, output = agl(*arguments)
    assert code == 2
    assert says in " ".join(output.split())
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('agent = "m:f"\n', "agent and command are both set"),
        ('adapters = ["langchain"]\n', r"adapters is \['langchain'\], but adapters cannot see the agents of a command"),
        ("reward = 'luck'\n", r"reward is 'luck'\. Use 'stdout', 'exit_code', 'file', 'post', 'none', or 'module:function'"),
        ("[runner]\nworkers = 2\n", r"runner\.workers is 2, but a command runs in processes of its own"),
    ],
)
def test_a_setting_that_a_command_does_not_honour_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.toml").write_text('command = "sh agent.sh"\ntasks = "t.jsonl"\nmodel = "m"\n' + text)
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path / "run.toml")


def test_a_configuration_has_an_agent_or_a_command_and_only_a_command_says_where_its_reward_is(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('tasks = "t.jsonl"\nmodel = "m"\n')
    with pytest.raises(ConfigError, match="Missing 'agent' at the top level"):
        load_config(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text('agent = "m:f"\nreward = "file"\ntasks = "t.jsonl"\nmodel = "m"\n')
    with pytest.raises(ConfigError, match="reward is 'file', but only a command takes it"):
        load_config(tmp_path / "run.toml")
