"""LlamaIndex: a function agent with a tool, and a tool that asks another agent."""

from __future__ import annotations

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike

from agentlightning.types import LLM


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = OpenAILike(llm.model, api_base=llm.base_url, api_key=llm.api_key, is_chat_model=True, is_function_calling_model=True)
    critic = FunctionAgent(name="critic", tools=[triple], llm=model, streaming=stream)

    async def ask_critic(request: str) -> str:
        """Asks the critic."""
        return str(await critic.run(request))

    writer = FunctionAgent(name="writer", tools=[double, ask_critic], llm=model, streaming=stream)
    return str(await writer.run(question))
