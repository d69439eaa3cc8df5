"""Google ADK: an agent with a tool, and another agent as a tool."""

from __future__ import annotations

from google.adk.agents import Agent, RunConfig
from google.adk.agents.run_config import StreamingMode
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.adk.tools.agent_tool import AgentTool
from google.genai import types

from agentlightning.types import LLM


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = LiteLlm(f"openai/{llm.model}", api_base=llm.base_url, api_key=llm.api_key)
    critic = Agent(name="critic", model=model, tools=[triple], description="Checks an answer.")
    writer = Agent(name="writer", model=model, tools=[double, AgentTool(critic)])
    runner = InMemoryRunner(writer, app_name="agents")
    session = await runner.session_service.create_session(app_name="agents", user_id="user")
    message = types.Content(role="user", parts=[types.Part(text=question)])
    config = RunConfig(streaming_mode=StreamingMode.SSE if stream else StreamingMode.NONE)
    events = [event async for event in runner.run_async(user_id="user", session_id=session.id, new_message=message, run_config=config)]
    return "".join(part.text or "" for part in events[-1].content.parts)
