"""What is there before AutoGen is."""

from __future__ import annotations

import subprocess
import sys

import agentlightning_autogen
from agentlightning.registry.registry import Registry
from agentlightning_autogen import adapter, plugin

WITHOUT = """
import sys
for name in ("autogen_core", "autogen_agentchat", "autogen_ext", "openai"):
    sys.modules[name] = None
import agentlightning_autogen, agentlightning_autogen.plugin
from agentlightning.errors import MissingExtra
try:
    from agentlightning_autogen import install
except MissingExtra as error:
    print(error)
"""


def test_without_autogen_the_package_imports_and_its_names_say_what_to_install() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    assert said == (
        "agentlightning_autogen.install needs autogen_core, which is not installed. Run: pip install 'agentlightning[autogen]'\n"
    )


def test_the_adapter_is_registered_and_opens_as_install() -> None:
    plugins = Registry({"autogen": plugin})
    assert plugins.load("adapters", "autogen") is agentlightning_autogen.install is adapter.install
    assert plugins.entry("adapters", "autogen").install == "pip install 'agentlightning[autogen]'"


def test_the_public_names_are_there() -> None:
    assert dir(agentlightning_autogen) == ["LightningChatCompletionClient", "current_span_id", "install", "uninstall"]
    assert all(getattr(agentlightning_autogen, name) is getattr(adapter, name) for name in agentlightning_autogen.__all__)
