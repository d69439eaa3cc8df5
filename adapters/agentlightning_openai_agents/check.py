"""The adapter's self-test for `agl doctor`."""

from importlib.metadata import version

from agentlightning_openai_agents.adapter import install


def check() -> str:
    """Install the adapter twice, as a program may do."""
    install()
    install()
    return f"records the OpenAI Agents SDK {version('openai-agents')}"
