"""An agent that answers questions by searching a library of passages.

Ordinary code for the OpenAI Agents SDK: nothing here knows of Agent Lightning. `solve.py` is what adds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents import Agent, Model, ModelSettings, RunContextWrapper, function_tool

from agentlightning_benchmarks.rag.index import Index

INSTRUCTIONS = "Search until you have found the answer, then reply with one line: Answer: the answer"
NOTHING = "No passage was found. Try other words."
MAX_TURNS = 6
"""Model calls for one question; a question of four hops takes five."""
MAX_TOKENS = 48
"""Of one reply."""


@dataclass(frozen=True)
class Library:
    """What `search` searches, and how much of it the model is shown."""

    index: Index
    top_k: int
    """Passages for one query."""
    words: int
    """Words of one passage; the rest is cut."""

    def search(self, query: str) -> str:
        """The passages that fit a query best, the best first, one a line. Any text gets an answer."""
        passages = self.index.search(query, self.top_k)
        return "\n".join(passage.shown(self.words) for passage in passages) or NOTHING


@function_tool
def search(library: RunContextWrapper[Library], query: str) -> str:
    """finds passages that have the words of a query."""
    return library.context.search(query)


def build_agent(model: Model) -> Agent[Library]:
    """The agent; run it with a `Library` as the context."""
    return Agent[Library](
        name="researcher", instructions=INSTRUCTIONS, tools=[search], model=model, model_settings=ModelSettings(max_tokens=MAX_TOKENS)
    )
