"""The prompts of a rollout: each text that the agent asked for is a note of its attempt, so the record tells what the rollout ran with."""

from __future__ import annotations

from typing import Any

from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Span, prompt_version

PROMPT = "prompt"
"""The attribute of a note with the name of a prompt. `text` and `version` are the others."""


def prompt_note(attempt_id: str, name: str, text: str) -> Span:
    """Return the note of a prompt that an agent asked for."""
    version = prompt_version(text)
    return Span(
        attempt_id=attempt_id, kind="note", name=f"prompt {name} {version}", attributes={PROMPT: name, "version": version, "text": text}
    )


def prompts_of(records: AttemptRecords) -> dict[str, str]:
    """Return the texts of the prompts that an attempt asked for, by name. Of one name the last counts."""
    return dict(asked_texts(records))


def asked_texts(records: AttemptRecords) -> list[tuple[str, str]]:
    """Return the name and the text of each prompt that an attempt asked for, in order."""
    notes: list[dict[str, Any]] = [span.attributes for span in records.spans if span.kind == "note" and PROMPT in span.attributes]
    return [(str(note[PROMPT]), str(note["text"])) for note in notes]
