"""An agent whose answer is shown as it is written."""

from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def today() -> str:
    """The day of the week."""
    return "Tuesday, the fourth day after a rather long Friday"


agent = create_agent(ChatOpenAI(model="gpt-4o-mini", streaming=True), tools=[today], name="guide")


async def main(question: str) -> str:
    shown: list[str] = []
    async for chunk, _ in agent.astream({"messages": [("user", question)]}, stream_mode="messages"):
        if isinstance(chunk, AIMessageChunk) and chunk.content:
            shown.append(chunk.content)
    assert len(shown) > 1, "it came in one piece"
    return "".join(shown)
