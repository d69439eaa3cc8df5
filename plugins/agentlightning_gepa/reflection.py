"""The question to the reflecting model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning_gepa.traces import NOTES, cut

PLACES = ("<examples>", "<tasks>", "<notes>")
"""What a template may show of the rollouts."""
NOTE = 500
"""Characters of a note in a template, at most."""


def question(template: str | None, prompt: str, examples: Sequence[Mapping[str, Any]]) -> str:
    """Return what asks for a better text than `prompt`. `examples`: of `traces.example`. Without a template: the text of the library."""
    shown = [{key: value for key, value in example.items() if key != NOTES} for example in examples]
    if template is None:
        return _rendered(prompt, shown)
    notes = Counter(cut(note, NOTE) for example in examples for note in example[NOTES])
    places = {
        "<prompt>": prompt,
        "<examples>": _rendered_examples(shown),
        "<tasks>": _rendered_examples([{"Task": example["Task"]} for example in examples]),
        "<notes>": "\n".join(f"- {note}" for note, _ in notes.most_common()),
    }
    names = re.compile("|".join(map(re.escape, places)))
    return names.sub(lambda name: places[name[0]], template)


def _rendered_examples(examples: Sequence[Mapping[str, Any]]) -> str:
    return _rendered("", examples, "<curr_param><side_info>").strip()


def _rendered(prompt: str, examples: Sequence[Mapping[str, Any]], template: str | None = None) -> str:
    from gepa.strategies.instruction_proposal import InstructionProposalSignature

    fields = {"current_instruction_doc": prompt, "dataset_with_feedback": examples, "prompt_template": template}
    return str(InstructionProposalSignature.prompt_renderer(fields))
