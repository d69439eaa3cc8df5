"""What is there before LangChain is."""

from __future__ import annotations

import subprocess
import sys

import agentlightning_langchain
from agentlightning.registry.registry import Registry, registry
from agentlightning_langchain import adapter, plugin

WITHOUT = """
import sys
for name in ("langchain_core", "langchain_openai", "langgraph", "openai"):
    sys.modules[name] = None
import agentlightning_langchain, agentlightning_langchain.plugin
from agentlightning.errors import MissingExtra
try:
    from agentlightning_langchain import LightningCallback
except MissingExtra as error:
    print(error)
"""


def test_without_langchain_the_package_imports_and_its_names_say_what_to_install() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    assert said == (
        "agentlightning_langchain.LightningCallback needs langchain_core, which is not installed. "
        "Run: pip install 'agentlightning[langchain]'\n"
    )


def test_the_adapter_is_registered_and_opens_as_install() -> None:
    assert registry().load("adapters", "langchain") is agentlightning_langchain.install is adapter.install
    entry = Registry({"langchain": plugin}).entry("adapters", "langchain")
    assert entry.install == "pip install 'agentlightning[langchain]'"


def test_the_public_names_are_there() -> None:
    assert dir(agentlightning_langchain) == ["LightningCallback", "current_span_id", "install", "uninstall"]
    assert all(getattr(agentlightning_langchain, name) is getattr(adapter, name) for name in agentlightning_langchain.__all__)
