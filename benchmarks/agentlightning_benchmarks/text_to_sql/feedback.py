"""Says what is wrong with a query, for a model that rewrites the agent's prompts."""

from __future__ import annotations

from agentlightning_benchmarks.text_to_sql.agent import ERROR
from agentlightning_benchmarks.text_to_sql.words import words

FIRST_WORDS = {"select", "with", "values"}


def feedback(query: str, result: str) -> str:
    """Return the kind of fault of a query that earned no reward. `result`: what the agent saw, with the error itself."""
    if next((word.lower() for word in words(query)), "") not in FIRST_WORDS:
        return "The reply is not a query. Write one SQLite query and nothing else."
    if result.startswith(ERROR):
        return "The query fails. Use only tables and columns of the schema."
    return "The query has a wrong result. Select exactly the columns that the question asks for."
