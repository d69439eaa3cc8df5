"""The comparison of ways to learn: about as many rollouts, and paired differences."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.parts import Part
from agentlightning.config.schema import build_config
from agentlightning.records.comparison import Side
from agentlightning.training.choice import Evaluation
from agentlightning.training.metrics import JSONLines
from agentlightning.training.run_folder import RunFolder
from agentlightning_benchmarks.demo.command import CONFIG

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "performance" / "ways.py"


@pytest.fixture(scope="module")
def ways() -> Any:
    spec = importlib.util.spec_from_file_location("ways_to_learn", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_way_gets_as_many_rollouts_as_the_demo_or_a_few_less(ways: Any) -> None:
    demo = tomllib.loads(CONFIG.read_text())
    for way in ways.WAYS:
        config = build_config(ways.settings_of(way, demo, "teacher"))
        group = config.algorithm["group_size"]
        shown = config.algorithm.get("demonstrated_steps", 0)
        rollouts = config.tasks_per_step * (shown + (config.steps - shown) * group)
        assert 0.95 * 768 < rollouts <= 768, way


@pytest.mark.parametrize("named_algorithm", [{}, {"algorithm": "rloo"}])
def test_rollouts_are_equal_with_a_config_that_names_few_settings(ways: Any, named_algorithm: dict[str, str]) -> None:
    settings = {"model": "m", "steps": 30, "tasks_per_step": 5, "eval": {"every": 30}, **named_algorithm}
    named = {"agent": "a:b", "tasks": "t"}
    group = Part.parse("algorithms", build_config({**named, **settings}).algorithm, "algorithm").make().group_size
    assert group > 1
    for way in ways.WAYS:
        config = build_config({**named, **ways.settings_of(way, settings, "teacher")})
        size = Part.parse("algorithms", config.algorithm, "algorithm").make().group_size
        shown = config.algorithm.get("demonstrated_steps", 0)
        rollouts = config.tasks_per_step * (shown + (config.steps - shown) * size)
        assert 0.95 * 30 * 5 * group < rollouts <= 30 * 5 * group, way


def test_an_own_config_gives_agent_tasks_and_held_out_tasks(
    ways: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"review": "good"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"review": "bad"}\n{"review": "ugly"}\n')
    (tmp_path / "ways_agent.py").write_text("def solve(task, llm):\n    return 1.0\n")
    lines = ['agent = "ways_agent:solve"', 'tasks = "tasks.jsonl"', 'eval_tasks = "held_out.jsonl"', 'model = "smollm2-135m"', "steps = 7"]
    config = tmp_path / "mine.toml"
    config.write_text("\n".join(lines))
    monkeypatch.setattr("sys.argv", ["ways.py", "--config", str(config)])
    options = ways.parse()
    assert options.ways == ["rewards", "teacher", "both", "demonstrations"]
    settings, tasks, held_out = ways.task_of(options)
    assert (tasks, held_out) == ([{"review": "good"}], [{"review": "bad"}, {"review": "ugly"}])
    assert (settings["agent"], settings["steps"], settings["eval"]) == ("ways_agent:solve", 7, {"every": 4})
    assert not {"name", "tasks", "eval_tasks"} & settings.keys()
    monkeypatch.setattr("sys.argv", ["ways.py", "--config", str(config), "--ways", "judge", "--judge", str(tmp_path)])
    with pytest.raises(SystemExit):
        ways.parse()
    assert "--rubric" in capsys.readouterr().err
    config.write_text("\n".join(line for line in lines if "held_out" not in line))
    monkeypatch.setattr("sys.argv", ["ways.py", "--config", str(config)])
    with pytest.raises(SystemExit, match="eval_tasks"):
        ways.task_of(ways.parse())


def test_differences_are_paired_by_task(
    ways: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs = [RunFolder.create(tmp_path, name) for name in ("rewards-0", "both-0")]
    for run, tokens in zip(runs, (30, 20), strict=True):
        metrics = JSONLines(run.path)
        row: dict[str, Any] = {
            "sampled_tokens": tokens,
            "demonstrated_tokens": 5,
            "trained_tokens": 10,
            "eval.greedy": 0.5,
            "seconds": 9.0,
            "seconds.evaluation": 4.0,
        }
        metrics.log({"step": 0, "eval.greedy": 0.5})
        metrics.log({"step": 1, **row})
    rewards = {"a": 0.0, "b": 0.25, "c": 0.5}, {"a": 0.5, "b": 0.75, "d": 1.0}
    sides = [
        Side(run, run.name, Evaluation(step=1, rewards={"sampled": of_run, "greedy": of_run}))
        for run, of_run in zip(runs, rewards, strict=True)
    ]
    ways.print_table(["rewards", "both"], {0: runs}, {0: (25, sides)})
    lines = capsys.readouterr().out.splitlines()
    both = next(line for line in lines if "both" in line)
    assert both.count("+0.500 (+0.500 to +0.500)") == 2, both
    assert "0.750" in both
    assert [cell.strip() for cell in both.split("│")[-4:-1]] == ["25", "10", "5"]
    assert "+" not in next(line for line in lines if "0.250" in line)
    assert any(line.startswith("Seed 0: rewards after 25 sampled tokens") for line in lines)
