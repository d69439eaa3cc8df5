"""LangChain's prebuilt agent with a tool, made once for the process."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def multiply(a: int, b: int) -> int:
    """The product of two whole numbers."""
    return a * b


agent = create_agent(ChatOpenAI(model="gpt-4o-mini"), tools=[multiply], system_prompt="You are good at sums.", name="solver")


async def main(question: str) -> str:
    result = await agent.ainvoke({"messages": [("user", question)]})
    return result["messages"][-1].content
