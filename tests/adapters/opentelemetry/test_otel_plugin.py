"""What is there before OpenTelemetry is, and what a preset needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agentlightning_opentelemetry
from agentlightning.errors import MissingExtra
from agentlightning.registry.registry import Registry
from agentlightning_opentelemetry import adapter, plugin, presets, processor
from agentlightning_opentelemetry.plugin import PRESETS

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
import agentlightning_opentelemetry, agentlightning_opentelemetry.plugin
from agentlightning.errors import MissingExtra
try:
    from agentlightning_opentelemetry import install
except MissingExtra as error:
    print(error)
"""


def test_without_opentelemetry_the_package_imports_and_its_names_say_what_to_install() -> None:
    printed = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    assert printed == (
        "agentlightning_opentelemetry.install needs opentelemetry, which is not installed. "
        "Run: pip install 'agentlightning[opentelemetry]'\n"
    )


def test_the_adapter_is_registered_and_opens_as_install() -> None:
    here = Registry({"opentelemetry": plugin})
    assert here.broken == {}
    assert here.load("adapters", "opentelemetry") is agentlightning_opentelemetry.install is adapter.install
    assert here.names("adapters") == [
        "agent-framework", "agno", "crewai", "dspy", "google-adk", "llama-index", "opentelemetry", "pydantic-ai", "smolagents", "strands",
    ]  # fmt: skip


def test_the_public_names_are_there() -> None:
    assert dir(agentlightning_opentelemetry) == ["LightningSpanProcessor", "current_span_id", "install", "uninstall"]
    assert agentlightning_opentelemetry.LightningSpanProcessor is processor.LightningSpanProcessor


@pytest.mark.parametrize(("name", "framework", "needs"), PRESETS)
def test_a_preset_that_is_not_installed_says_what_to_install(
    name: str, framework: str, needs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in needs:
        monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(MissingExtra, match=rf"Run: pip install 'agentlightning\[{name}\]'$"):
        Registry({"opentelemetry": plugin}).load("adapters", name)
    assert callable(getattr(presets, name.replace("-", "_")))


def test_every_preset_has_an_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert all("agentlightning[opentelemetry]" in extras[name] for name, _, _ in PRESETS)
