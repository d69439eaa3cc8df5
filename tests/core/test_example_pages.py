"""The whole agents of `docs/examples`: each earns its reward with a model that answers well, and trains with a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agentlightning_openai_agents
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.testing.world import open_world
from agentlightning_torch.testing import tiny_model
from judge_server import judge_server, score, work

ROOT = Path(__file__).resolve().parents[2]
IN_PAGES = ("judges", "policies", "rewards", "teachers")
"""Pages with an example in them; the rest are whole agents."""
PAGES = [*sorted((ROOT / "docs" / "examples").glob("*.md")), *(ROOT / "docs" / f"{name}.md" for name in IN_PAGES)]
EXAMPLES = len(PAGES) - len(IN_PAGES)
QUICK = ("langgraph-tools", "openai-client", "judges", "policies", "teachers")
"""Pages that `make test` runs; `make test-slow` runs the others."""
JUDGE = "http://127.0.0.1:8001/v1"
"""Address of the judge in a page."""
NODE_PACKAGES = Path(os.environ.get("AGL_TEST_HARNESSES") or "nowhere", "node_modules")
BLOCK = re.compile(r"(?:Save this as `(?P<before>[\w.]+)`:\n\n)?```\w+\n(?:(?:#|//) (?P<first>[\w.]+\.\w+)\n)?(?P<text>.*?)```", re.DOTALL)


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, by name."""
    blocks = [(block["before"] or block["first"], block["text"]) for block in BLOCK.finditer(page.read_text())]
    return {name: text for name, text in blocks if name}


def smaller(config: str, model: str) -> str:
    """The config with a tiny model and one step."""
    assert config.count('model = "smollm2-135m"') == 1
    config = config.replace('"smollm2-135m"', f'"{model}"').replace('"top:10"', '"full"')
    config = re.sub(r"^steps = \d+$", "steps = 1", config, flags=re.MULTILINE)
    config = re.sub(r"^tasks_per_step = \d+\n", "", config, flags=re.MULTILINE)
    config = re.sub(r"^every = \d+$", "every = 1\ntasks = 2", config, flags=re.MULTILINE)
    config = config.replace('"HuggingFaceTB/SmolLM2-1.7B-Instruct"', f'"{model}"')
    return "tasks_per_step = 1\n" + config


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=() if page.stem in QUICK else pytest.mark.slow) for page in PAGES])
def test_the_agent_of_a_page_trains(page: Path, tmp_path: Path) -> None:
    files = files_of(page)
    if "agent.mts" in files:
        if shutil.which("node") is None or not (NODE_PACKAGES / "tsx").is_dir():
            pytest.skip("no node, or AGL_TEST_HARNESSES names no folder with openai and tsx")
        (tmp_path / "node_modules").symlink_to(NODE_PACKAGES.resolve())
    model = tiny_model(tmp_path / "tiny", context=4096).path
    for name, text in files.items():
        (tmp_path / name).write_text(smaller(text, model) if name == "config.toml" else text)
    command = [sys.executable, "-m", "agentlightning", "train", "config.toml"]
    with judge_server(lambda body: score(len(work(body)) % 10)) as judge:
        config = tmp_path / "config.toml"
        config.write_text(config.read_text().replace(JUDGE, judge.base_url))
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert bool(judge.bodies) == ("[reward.judge]" in config.read_text())
    assert done.returncode == 0, done.stdout
    [result] = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["finished"] is True
    shown = subprocess.run([sys.executable, "-m", "agentlightning", "show"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("1 train rollout" if "[teacher]" in config.read_text() else "8 train rollouts") in shown.stdout
    assert "failed" not in shown.stdout


@pytest.mark.parametrize("page", PAGES[:EXAMPLES], ids=lambda page: page.stem)
def test_a_page_shows_a_config_an_agent_and_the_output_of_a_run(page: Path) -> None:
    files = files_of(page)
    config = tomllib.loads(files["config.toml"])
    agent = config["agent"].partition(":")[0] + ".py" if "agent" in config else config["command"].split(" ")[-1]
    assert agent in files
    assert "$ agl train config.toml" in page.read_text()
    assert "$ agl show latest" in page.read_text()


@dataclass(frozen=True)
class Case:
    """What a good model replies in a task of a page. `{}` stands for the task's answer."""

    module: str
    task: int
    replies: tuple[str, ...]
    agents: tuple[str | None, ...]
    """The agent of each reply."""
    reward: float = 1.0


NONE = (None,)
CASES = {
    "langgraph-tools": [
        Case("shop", 0, ("CALL stock(lamp)", "We have {}."), ("support",) * 2),
        Case("shop", 0, ("CALL stock(lamp)", "We have 7."), ("support",) * 2, reward=0.1),
        Case("shop", 0, ("CALL price(lamp)", "We have 7."), ("support",) * 2, reward=0.0),
    ],
    "langgraph-subagents": [
        Case(
            "library",
            0,
            ("CALL ask_catalogue(The Red River)", "CALL shelf(The Red River)", "On shelf {}.", "It is on shelf {}."),
            ("librarian", "catalogue", "catalogue", "librarian"),
        )
    ],
    "openai-agents-handoffs": [
        Case("support", 0, ("CALL transfer_to_billing()", "CALL amount(294)", "It is {} dollars."), ("triage", "billing", "billing")),
        Case("support", 0, ("CALL transfer_to_shipping()", "It is {} dollars."), ("triage", "shipping"), reward=0.0),
    ],
    "autogen-group-chat": [
        Case("quote", 0, ("CALL price(lamp)", 'CALL multiply({{"a": 2, "b": 35}})'), ("clerk", "accountant")),
        Case("quote", 0, ("CALL price(lamp)", "It costs 7."), ("clerk", "accountant"), reward=0.1),
    ],
    "openai-client": [
        Case("convert", 0, ("CALL convert(11 inches)", "11 inches are {} cm."), NONE * 2),
        Case("convert", 0, ("CALL convert(11 apples)", "CALL convert(eleven)", "I don't know."), NONE * 3, reward=0.0),
    ],
    "anthropic-client": [
        Case("rooms", 0, ('CALL book({{"day": "Monday", "hour": 9}})', "Done."), NONE * 2),
        Case("rooms", 1, ('CALL book({{"day": "Monday", "hour": 9}})', 'CALL book({{"day": "Monday", "hour": 11}})', "Done."), NONE * 3),
        Case("rooms", 0, ('CALL book({{"day": "Friday", "hour": 9}})', "Done."), NONE * 2, reward=0.0),
    ],
}


def module_of(page: Path, name: str) -> ModuleType:
    """The Python file of a page. Each byte is a token here, so replies may be longer."""
    module = ModuleType(name)
    text = re.sub(r"max_tokens=\d+", "max_tokens=200", files_of(page)[f"{name}.py"])
    exec(compile(text, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.fixture
def uninstalled() -> Iterator[None]:
    """The adapter that a page installs is gone after its test."""
    yield
    agentlightning_openai_agents.uninstall()


@pytest.mark.parametrize(
    ("page", "case"),
    [pytest.param(page, case, id=f"{page}-{number}") for page, cases in CASES.items() for number, case in enumerate(cases)],
)
async def test_the_agent_of_a_page_earns_its_reward(page: str, case: Case, tmp_path: Path, uninstalled: None) -> None:
    make_tokenizer(tmp_path)
    module: Any = module_of(ROOT / "docs" / "examples" / f"{page}.md", case.module)
    task = module.tasks()[case.task]
    async with open_world(tmp_path, [reply.format(task.get("answer")) for reply in case.replies]) as world:
        async with world.rollout() as recorder:
            assert await module.solve(task, recorder.llm) == case.reward
        learned = await world.trajectory(recorder)
    assert [transition.agent for transition in learned.transitions] == list(case.agents)


def test_every_python_page_has_cases() -> None:
    assert {page.stem for page in PAGES if "agent.mts" not in files_of(page)} == CASES.keys() | set(IN_PAGES)


async def test_the_page_on_rewards_gives_each_measure_a_name(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    module: Any = module_of(ROOT / "docs" / "rewards.md", "quiz")
    async with open_world(tmp_path, ["It is Paris, of course."]) as world:
        async with world.rollout() as recorder:
            assert await module.solve(module.tasks()[0], recorder.llm) is None
        records = await world.records(recorder)
    assert {reward.name: reward.value for reward in records.rewards} == {"right": 1.0, "short": 0.0}
