"""What is there before the SDK is."""

from __future__ import annotations

import subprocess
import sys

import agentlightning_openai_agents
from agentlightning.registry.registry import Registry
from agentlightning_openai_agents import adapter, plugin

WITHOUT = """
import sys
for name in ("agents", "openai"):
    sys.modules[name] = None
import agentlightning_openai_agents, agentlightning_openai_agents.plugin
from agentlightning.errors import MissingExtra
try:
    from agentlightning_openai_agents import install
except MissingExtra as error:
    print(error)
"""


def test_without_the_sdk_the_package_imports_and_its_names_say_what_to_install() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    assert said == (
        "agentlightning_openai_agents.install needs agents, which is not installed. Run: pip install 'agentlightning[openai-agents]'\n"
    )


def test_the_adapter_is_registered_and_opens_as_install() -> None:
    here = Registry({"openai-agents": plugin})
    assert here.load("adapters", "openai-agents") is agentlightning_openai_agents.install is adapter.install
    assert here.entry("adapters", "openai-agents").install == "pip install 'agentlightning[openai-agents]'"


def test_the_public_names_are_there() -> None:
    assert dir(agentlightning_openai_agents) == ["LightningTracingProcessor", "current_span_id", "install", "uninstall"]
    assert all(getattr(agentlightning_openai_agents, name) is getattr(adapter, name) for name in agentlightning_openai_agents.__all__)
