"""An agent that answers questions by searching passages.

This is ordinary code for the OpenAI Agents SDK, without Agent Lightning. `solve.py` makes it trainable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agents import Agent, Model, ModelSettings, RunContextWrapper, TResponseInputItem, function_tool

from agentlightning_benchmarks.rag.index import Index

SHORT = "Search until you have found the answer, then reply with one line: Answer: the answer"
"""Instructions for a model of 135M parameters that has learned them in a warm-up."""
FULL = (
    "Answer the question with the passages of an encyclopedia. A question often needs several facts: search for one fact at a time, "
    "with the names and words that its passage must contain. If a search does not help, try other words. When you know the answer, "
    "reply with one line and as few words as possible: Answer: the answer"
)
"""Instructions for a model that follows them."""
EXAMPLE_QUESTION = "In which country was the director of the film The Silver Lake born?"
EXAMPLE_SEARCHES = (
    (
        "director of the film The Silver Lake",
        "The Silver Lake: The Silver Lake is a drama film of 1962, directed by Anna Holm and set in a fishing village.\n"
        "Silver Lake Dam: The dam was completed in 1931 and supplies three towns with water.",
    ),
    (
        "Anna Holm born",
        "Anna Holm: Anna Holm (1921 – 1990) was a film director, born in Aarhus in Denmark. She studied in Paris.\n"
        "Holm (surname): Holm is a common surname in Scandinavia.",
    ),
)
EXAMPLE_ANSWER = "Answer: Denmark"
NOTHING = "No passage was found. Try other words."
MAX_TURNS = 6
"""Maximum number of model calls per question. A four-hop question takes five."""
MAX_TOKENS = 48
"""Maximum number of tokens per reply."""


@dataclass(frozen=True)
class Library:
    """The index to search, and how much of each result the model sees."""

    index: Index
    top_k: int
    """Number of passages per query."""
    words: int
    """Maximum number of words per passage."""

    def search(self, query: str) -> str:
        """Return the best passages for a query, best first, one per line. Any query gets a result."""
        passages = self.index.search(query, self.top_k)
        return "\n".join(passage.shown(self.words) for passage in passages) or NOTHING


@function_tool
def search(library: RunContextWrapper[Library], query: str) -> str:
    """finds passages that have the words of a query."""
    return library.context.search(query)


def asked(question: str, *, example: bool) -> list[TResponseInputItem]:
    """Return the conversation that asks a question, after a worked example if wanted."""
    items: list[TResponseInputItem] = []
    if example:
        items.append({"role": "user", "content": EXAMPLE_QUESTION})
        for number, (query, passages) in enumerate(EXAMPLE_SEARCHES):
            arguments, call_id = json.dumps({"query": query}), f"example-{number}"
            items.append({"type": "function_call", "call_id": call_id, "name": search.name, "arguments": arguments})
            items.append({"type": "function_call_output", "call_id": call_id, "output": passages})
        items.append({"role": "assistant", "content": EXAMPLE_ANSWER})
    return [*items, {"role": "user", "content": question}]


def build_agent(model: Model, instructions: str = SHORT) -> Agent[Library]:
    """Return the agent. Run it with a `Library` as its context."""
    return Agent[Library](
        name="researcher", instructions=instructions, tools=[search], model=model, model_settings=ModelSettings(max_tokens=MAX_TOKENS)
    )
