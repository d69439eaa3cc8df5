from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client import generate_latest

import agentlightning as agl
from agentlightning.config.json_schema import config_schema
from agentlightning.config.parts import Part
from agentlightning.config.schema import Config, check_names, load_config
from agentlightning.config.settings_reference import markdown
from agentlightning.contracts.store import StoreCounts
from agentlightning.registry.registry import Registry, registry
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.identical import identical
from agentlightning.serving.serve import served_model
from agentlightning.settings import build
from agentlightning.telemetry.metrics import Metrics, TrainingMetrics
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_config
from agentlightning_torch.testing import tiny_model

ROOT = Path(__file__).parents[2]


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_the_configuration_of_the_first_page_is_one() -> None:
    (text,) = blocks("docs/start.md", "toml")
    config = build(Config, tomllib.loads(text))
    assert config.steps == 10
    build(agl.LightningRL, config.algorithm, "algorithm").parts()


def test_the_readme_and_the_first_page_use_names_that_exist() -> None:
    (text,) = blocks("README.md", "python")
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs/start.md").read_text()
    names = set(re.findall(r"agl\.(\w+)", pages)) - {"db"}
    assert {"train", "LLM", "LightningRL", "rollout", "reward"} <= names
    assert names <= set(agl.__all__)
    assert len(text.strip().splitlines()) <= 20


def test_the_example_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for a tiny model and one small step."""
    (text,) = blocks("README.md", "python")
    tiny_model(tmp_path / "tiny")
    assert text.count('model="smollm2-135m", steps=10') == 1
    text = text.replace('model="smollm2-135m", steps=10', 'model="tiny", steps=1, tasks_per_step=1, progress=False')
    assert text.count('"top:10"') == 1
    text = text.replace('"top:10"', '"top:1"')
    monkeypatch.chdir(tmp_path)
    world: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "my_agent.py", "exec", dont_inherit=True), world)
    (run,) = RunFolder.all(tmp_path / "runs")
    assert run.read_result()["steps"] == 1
    assert list(run.path.glob("checkpoints/*/model.safetensors"))


def test_the_advantage_of_the_contributing_guide_works_as_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    function, plugin = blocks("CONTRIBUTING.md", "python")[:2]  # tests/core/testing runs the others
    package, module, entry = ModuleType("my_package"), ModuleType("my_package.median"), ModuleType("my_package.plugin")
    exec(function, module.__dict__)
    exec(plugin, entry.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", package)
    monkeypatch.setitem(sys.modules, "my_package.median", module)
    found = Registry({"my_package": entry})
    assert found.broken == {}
    advantage = Part.parse("advantages", {"name": "median", "scale": 0.5}, "algorithm.advantage", found).make()
    rollouts = RolloutArrays.from_arrays(returns=[0.0, 1.0, 4.0], group=[0, 0, 0], rollout=[0, 1, 1, 2])
    result = advantage(rollouts, identical(rollouts))
    assert result.tolist() == [-0.5, 0.0, 0.0, 1.5]


def test_the_worker_of_the_page_on_agents_works_for_the_rollout_of_each_job() -> None:
    (text,) = blocks("docs/agents.md", "python")
    world: dict[str, Any] = {}
    exec(compile(text, "worker.py", "exec", dont_inherit=True), world)
    for _ in range(2):
        with agl.rollout("question", store="memory:") as rollout:
            assert world["solve"]("question") == f"question in {rollout.id}"


def test_the_examples_of_the_page_on_algorithms_work(monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = blocks("docs/algorithms.md", "python")
    module = ModuleType("my_rl")
    exec(own, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_rl", module)
    for text in blocks("docs/algorithms.md", "toml"):
        config = build(Config, {"agent": "a:b", "tasks": "t.jsonl", "model": "m", **tomllib.loads(text)})
        check_names(config)
    credit, advantage, loss = build(agl.LightningRL, config.algorithm, "algorithm").parts()
    rollouts = RolloutArrays.from_arrays(returns=[0.0, 1.0, 4.0], group=[0, 0, 0], rollout=[0, 1, 1, 2])
    returns = credit(rollouts)
    assert returns.tolist() == [0.0, 0.3, 1.0, 4.0]
    assert advantage(rollouts, returns).tolist() == [-1.0, -0.7, 0.0, 1.0]
    assert loss.epochs == 2
    assert loss.term(np.zeros(2).view(Tensorish), np.zeros(2), np.ones(2)).tolist() == [-1.0, -1.0]


class Tensorish(np.ndarray):
    def exp(self) -> np.ndarray:
        return np.exp(self)


def test_the_page_on_algorithms_names_all_that_is_built_in() -> None:
    text = (ROOT / "docs/algorithms.md").read_text()
    for kind in ("step_signals", "credits", "advantages", "losses", "corrections", "filters", "samplers", "algorithms"):
        for entry in registry().entries(kind):
            assert f"`{entry.name}`" in text or f'"{entry.name}"' in text or entry.plugin != "builtin", f"{kind}: {entry.name}"


def test_the_page_on_settings_is_what_the_settings_say() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == markdown(config_schema()), "Run: agl config --markdown > docs/settings.md"


def test_the_documents_name_no_file_that_is_missing() -> None:
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(each.relative_to(ROOT)) for each in (ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text()):
            if "://" not in target and not target.endswith(".png"):  # the picture is made by a measured run
                assert ((ROOT / file).parent / target).exists(), f"{file}: {target}"


def test_the_loop_of_the_page_on_production_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `agl serve` in another process, whose store is read over HTTP; the model is a tiny one."""
    tiny_model(tmp_path / "tiny")
    acts, later = blocks("docs/production.md", "python")
    (text,) = blocks("docs/production.md", "toml")
    monkeypatch.setenv("AGL_TOKEN", "a token")
    command = [str(Path(sys.executable).with_name("agl")), "serve", "--model", str(tmp_path / "tiny"), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "AGL_STORE": "sqlite:agl.db"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said: dict[str, str] = {}
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
            name, _, value = line.strip().partition(" ")
            said[name] = value.strip()
        printed = {each.split(" ")[0] for each in blocks("docs/production.md", "console")[0].splitlines()[1:-1]}
        assert printed - {"weights"} == set(said), "a run has weights, a model has none"
        monkeypatch.setenv("AGL_STORE", said["store"])
        world: dict[str, Any] = {}
        exec(acts, world)
        for number in range(12):
            _, attempt_id = world["answer"](f"question {number}")
            exec(later.replace("1.0", str(float(number % 2))), {"attempt_id": attempt_id})  # whatever the tiny model answers
        text = re.sub('model = ".*"', f'model = "{tmp_path / "tiny"}"', text)
        text = text.replace("http://127.0.0.1:8000", said["base_url"].removesuffix("/v1")).replace("= 8", "= 2")
        (tmp_path / "learn.toml").write_text(f'folder = "runs"\n{text}')
        run = train_config(load_config(tmp_path / "learn.toml"), progress=False)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        process.stdout.close()
    trained = RunFolder.open(run.folder).read_batches()
    assert run.result["steps"] == 2, "twelve rollouts are a step of eight and one of four"
    assert len(trained) == 12
    assert sum(each.trained for each in trained.values()) > 0
    assert served_model(str(run.folder), Progress())[2] is not None


def test_the_monitoring_of_the_documents_uses_metrics_that_exist() -> None:
    metrics = Metrics()
    TrainingMetrics(metrics, steps=1)
    metrics.snapshot.counts = StoreCounts(queued={}, running={}, lost=0)
    text = generate_latest(metrics.registry).decode()
    names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    names |= {name for name, _ in TrainingMetrics.GAUGES.values()} | {"agl_policy_version", "agl_training_last_step_timestamp_seconds"}
    page = (ROOT / "docs/operating.md").read_text()
    table = set(re.findall(r"`(agl_\w+?)(?:\{[\w,]*\})?`", page))
    own = {name for name in names if name.startswith("agl_") and not name.endswith("_created")}
    assert own == {name for name in table if name.startswith("agl_")}
    scrape, rules = (yaml.safe_load(block) for block in blocks("docs/operating.md", "yaml"))
    assert scrape["scrape_configs"][0]["authorization"] == {"credentials_file": "token"}
    for rule in rules["groups"][0]["rules"]:
        used = {name.removesuffix("_bucket") for name in re.findall(r"agl_\w+", rule["expr"])}
        assert used <= names, rule
