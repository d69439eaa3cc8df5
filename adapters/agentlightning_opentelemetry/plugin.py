"""Registers the OpenTelemetry adapter and its presets. Cheap to import: the adapter itself is imported on first use."""

from __future__ import annotations

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("opentelemetry.sdk",)
PRESETS = (
    ("agent-framework", "Microsoft Agent Framework", ("agent_framework",)),
    ("agno", "agno", ("agno", "openinference.instrumentation.agno")),
    ("crewai", "CrewAI", ("crewai", "openinference.instrumentation.crewai")),
    ("dspy", "DSPy", ("dspy", "openinference.instrumentation.dspy")),
    ("google-adk", "Google ADK", ("google.adk",)),
    ("llama-index", "LlamaIndex", ("llama_index.core", "openinference.instrumentation.llama_index")),
    ("pydantic-ai", "Pydantic AI", ("pydantic_ai",)),
    ("smolagents", "smolagents", ("smolagents", "openinference.instrumentation.smolagents")),
    ("strands", "Strands Agents", ("strands",)),
)
"""Name of the preset and of its extra, the framework, and the modules that it needs. `presets` has one of each name."""


@hookimpl
def register_adapters(register: Register) -> None:
    register(
        "opentelemetry",
        "agentlightning_opentelemetry.adapter:install",
        summary="records agents, tools, and model calls of every framework that emits OpenTelemetry spans",
        extra="opentelemetry",
        needs=NEEDS,
    )
    for name, framework, needs in PRESETS:
        register(
            name,
            f"agentlightning_opentelemetry.presets:{name.replace('-', '_')}",
            summary=f"records {framework} agents, tools, and model calls",
            extra=name,
            needs=(*NEEDS, *needs),
        )


@hookimpl
def register_checks(register: Register) -> None:
    register("opentelemetry", "agentlightning_opentelemetry.check:check", summary="installs", extra="opentelemetry", needs=NEEDS)
