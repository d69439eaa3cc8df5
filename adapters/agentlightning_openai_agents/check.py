"""Tries the adapter out, for `agl doctor`."""

from importlib.metadata import version

from agentlightning_openai_agents.adapter import install


def check() -> str:
    """Install it, twice, as a program may."""
    install()
    install()
    return f"the OpenAI Agents SDK {version('openai-agents')} is recorded"
