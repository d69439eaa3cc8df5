"""The LangChain adapter keeps the contract that every adapter keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

import agentlightning_langchain
from agentlightning.testing.adapter_contract import AdapterContract
from agentlightning.types import LLM


class TestLangChain(AdapterContract):
    adapter = agentlightning_langchain

    async def run_agent(self, llm: LLM, tool: Callable[[int], int], question: str) -> str:
        model: Any = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0)  # type: ignore[arg-type]
        result = await create_agent(model, [tool], name="solver").ainvoke({"messages": [("user", question)]})  # type: ignore[arg-type]
        return result["messages"][-1].content
