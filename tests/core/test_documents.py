from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import agentlightning as agl
from agentlightning.config import Config
from agentlightning.registry import Registry
from agentlightning.rl.credit.identical import identical
from agentlightning.rl.episodes import Episodes
from agentlightning.settings import bind, build

ROOT = Path(__file__).parents[2]


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_the_configuration_of_the_readme_is_one() -> None:
    (text,) = blocks("README.md", "toml")
    config = build(Config, tomllib.loads(text))
    assert config.steps == 10
    build(agl.LightningRL, config.algorithm, "algorithm").parts()


def test_the_example_of_the_readme_uses_names_that_exist() -> None:
    (text,) = blocks("README.md", "python")
    compile(text, "README.md", "exec")
    names = set(re.findall(r"agl\.(\w+)", (ROOT / "README.md").read_text())) - {"db"}
    assert {"train", "LLM", "LightningRL", "rollout", "reward"} <= names
    assert names <= set(agl.__all__)
    assert len(text.strip().splitlines()) <= 15


def test_the_advantage_of_the_contributing_guide_works_as_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    function, plugin = blocks("CONTRIBUTING.md", "python")
    package, module, entry = ModuleType("my_package"), ModuleType("my_package.median"), ModuleType("my_package.plugin")
    exec(function, module.__dict__)
    exec(plugin, entry.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", package)
    monkeypatch.setitem(sys.modules, "my_package.median", module)
    found = Registry({"my_package": entry})
    assert found.broken == {}
    advantage = bind("advantages", {"name": "median", "scale": 0.5}, "algorithm.advantage", found)
    episodes = Episodes.from_arrays(outcome=[0.0, 1.0, 4.0], group=[0, 0, 0], rollout=[0, 1, 1, 2])
    result = advantage(episodes, identical(episodes))
    assert result.tolist() == [-0.5, 0.0, 0.0, 1.5]


def test_the_documents_name_no_file_that_is_missing() -> None:
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text()):
            if "://" not in target and not target.endswith(".png"):  # the picture is made by a measured run
                assert (ROOT / target).exists(), f"{file}: {target}"
