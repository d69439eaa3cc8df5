"""Model calls that continue a conversation and yet start afresh, because something changed its history."""

from __future__ import annotations

from collections.abc import Mapping

UNBRIDGED = 0.1
"""Share of the continuing model calls that may start afresh. Some agents begin a new conversation now and then."""
BY_DESIGN = ("first", "upstream", "policy changed")
"""Contexts of calls that continue no tokens of their own policy."""
WAYS_OUT = {
    "rewritten": 'The chat template changes earlier turns. Set history = "exact" to keep them as they were sampled.',
    "edited": "The agent changes a reply before it sends it back. Send replies back as they came.",
    "trimmed": "The agent leaves out earlier messages. Send complete conversations.",
    "tools changed": "The agent offers other tools, or another reply format, than in the call before. Keep them the same.",
    "repeated": "The agent's requests end with a reply. End them with a new message.",
    "renderer changed": "Another renderer or tokenizer made the earlier turn. Start new conversations.",
}
"""Of a history that is rewritten, by the context without what comes after its colon."""


def fresh_calls(contexts: Mapping[str, int]) -> tuple[int, int, str] | None:
    """Return how many of the continuing model calls start afresh, of how many, and the commonest cause; None: too few to matter.

    `contexts` counts completed calls by `Call.context`.
    """
    continuing = {context: count for context, count in contexts.items() if context not in BY_DESIGN}
    total, bridged = sum(continuing.values()), continuing.pop("bridged", 0)
    if total - bridged <= total * UNBRIDGED:
        return None
    return total - bridged, total, max(continuing, key=lambda context: continuing[context])
