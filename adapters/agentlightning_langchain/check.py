"""The adapter's self-test for `agl doctor`."""

from importlib.metadata import version

from agentlightning_langchain.adapter import install


def check() -> str:
    """Install the adapter twice, as a program may do."""
    install()
    install()
    return f"records LangChain {version('langchain-core')}"
