"""Tries the adapter out, for `agl doctor`."""

from importlib.metadata import version

from agentlightning_langchain.adapter import install


def check() -> str:
    """Install it, twice, as a program may."""
    install()
    install()
    return f"LangChain {version('langchain-core')} is recorded"
