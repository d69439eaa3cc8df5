"""The adapter's self-test for `agl doctor`."""

from importlib.metadata import version

from agentlightning_opentelemetry.adapter import install


def check() -> str:
    """Install the adapter twice, as a program may do."""
    install()
    install()
    return f"records OpenTelemetry {version('opentelemetry-sdk')}"
