"""The OpenTelemetry adapter keeps the contract that every adapter keeps, with both conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from otel_world import Convention, GenAI, OpenInference, run

import agentlightning_opentelemetry
from agentlightning.testing.adapter_contract import AdapterContract
from agentlightning.types import LLM


class TestGenAI(AdapterContract):
    adapter = agentlightning_opentelemetry
    convention: ClassVar[Convention] = GenAI

    async def run_agent(self, llm: LLM, tool: Callable[[int], int], question: str) -> str:
        return await run(self.convention, llm, tool, question)


class TestOpenInference(TestGenAI):
    convention = OpenInference
