"""Presets: the adapter with the instrumentation of one framework switched on. Each is called like `install`.

A framework's own telemetry comes first, because it knows most. Where there is none, OpenInference has a package for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

from agentlightning_opentelemetry.adapter import install

Preset: TypeAlias = Callable[..., None]


def _call(module: str, *names: str) -> Preset:
    """Return a preset that calls a function of the framework, or a method of one of its classes."""

    def preset(models: Collection[str] = ()) -> None:
        install(models)
        function: Any = importlib.import_module(module)
        for name in names:
            function = getattr(function, name)
        function()

    return preset


def _openinference(module: str, instrumentor: str) -> Preset:
    """Return a preset that switches an OpenInference instrumentor on, once."""

    def preset(models: Collection[str] = ()) -> None:
        install(models)
        kind: Any = getattr(importlib.import_module(f"openinference.instrumentation.{module}"), instrumentor)
        if not kind().is_instrumented_by_opentelemetry:
            kind().instrument()

    return preset


agent_framework = _call("agent_framework.observability", "enable_instrumentation")
agno = _openinference("agno", "AgnoInstrumentor")
crewai = _openinference("crewai", "CrewAIInstrumentor")
dspy = _openinference("dspy", "DSPyInstrumentor")
google_adk = install
"""It emits spans by itself."""
llama_index = _openinference("llama_index", "LlamaIndexInstrumentor")
pydantic_ai = _call("pydantic_ai", "Agent", "instrument_all")
smolagents = _openinference("smolagents", "SmolagentsInstrumentor")
strands = install
"""It emits spans by itself."""
