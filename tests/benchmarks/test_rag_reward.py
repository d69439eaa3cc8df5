"""The retrieval benchmark's reward against hand-made cases, and what its demonstrations show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentlightning_benchmarks.rag.demonstrate import demonstrate, query_of
from agentlightning_benchmarks.rag.reward import answered, normalise, reward, token_f1, well_formed

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"properties": {"query": {"type": "string"}}}}}]
TASK = {
    "question": "Where was the founder of Halda Works born?",
    "answer": "Kesby",
    "decomposition": [
        {"question": "Halda Works >> founder", "answer": "Anna Voller"},
        {"question": "Where was #1 born?", "answer": "Kesby"},
    ],
}


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        ("Kesby", "Kesby", 1.0),
        ("the KESBY.", "Kesby", 1.0),
        ("the town of Kesby", "Kesby", 2 / 4),
        ("Anna Voller", "Anna Marie Voller", 2 * 2 / 5),
        ("Anna Anna", "Anna", 2 / 3),
        ("a new new york", "new york new york", 2 * 3 / 7),
        ("8.11 million", "8.11 million", 1.0),
        ("Kesham", "Kesby", 0.0),
        ("", "Kesby", 0.0),
        ("the", "A", 1.0),
        ("", "A", 0.0),
        ("Kesby", "A", 0.0),
    ],
)
def test_token_f1_is_that_of_squad(said: str, right: str, f1: float) -> None:
    assert token_f1(said, right) == pytest.approx(f1)


def test_normalising_drops_case_punctuation_and_articles() -> None:
    assert normalise("The  U.S. and a Café, an 'end'") == ["us", "and", "café", "end"]


@pytest.mark.parametrize(
    ("reply", "searched", "earned"),
    [
        ("Answer: Kesby", True, 1.0),
        ("  Answer: Kesby\n", True, 1.0),
        ("Answer: Kesby", False, 0.9),
        ("Kesby", True, 0.9),
        ("Answer:Kesby", True, 0.9),
        ("answer: Kesby", True, 0.9 * 2 / 3),
        ("I think\nAnswer: Kesby", True, 0.9),
        ("Answer: Answer: Kesby", True, 0.9),
        ("Answer: Kesby\nAnswer: Halham", True, 0.0),
        ("Answer: Halham", True, 0.1),
        ("Answer:", True, 0.0),
        ("Answer: ", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_the_reward_is_nine_parts_answer_and_one_part_format(reply: str, searched: bool, earned: float) -> None:
    assert reward(reply, ["Kesby"], searched=searched) == pytest.approx(earned)


def test_the_best_of_answer_and_aliases_counts() -> None:
    assert reward("Answer: UK", ["United Kingdom", "UK"], searched=True) == 1.0
    assert reward("Answer: United", ["United Kingdom", "UK"], searched=True) == pytest.approx(0.9 * 2 / 3 + 0.1)


def test_an_answer_is_what_follows_the_last_mark() -> None:
    assert answered("so it is.\nAnswer: Kesby ") == "Kesby"
    assert answered("just Kesby") == "just Kesby"
    assert not well_formed("Answer: one\nline more", searched=True)


def asked(*turns: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Search."}, {"role": "user", "content": TASK["question"]}, *turns]


def found(call: dict[str, Any] | None, text: str) -> list[dict[str, Any]]:
    """A demonstrated call and what it found."""
    assert call is not None
    return [call, {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": text}]


def query(message: dict[str, Any] | None) -> str:
    assert message is not None
    return json.loads(message["tool_calls"][0]["function"]["arguments"])["query"]


def test_a_demonstration_searches_each_hop_and_then_answers() -> None:
    first = demonstrate(TASK, asked(), TOOLS)
    assert query(first) == "Halda Works founder"
    turns = found(first, "Anna Voller founded Halda Works.")
    second = demonstrate(TASK, asked(*turns), TOOLS)
    assert query(second) == "Where was Anna Voller born?"
    turns += found(second, "Anna Voller was born in Kesby.")
    assert demonstrate(TASK, asked(*turns), TOOLS) == {"role": "assistant", "content": "Answer: Kesby"}


def test_nothing_is_demonstrated_that_was_not_found() -> None:
    first = demonstrate(TASK, asked(), TOOLS)
    assert demonstrate(TASK, asked(*found(first, "Anna Vollersen founded Halda Works.")), TOOLS) is None


def test_nothing_is_demonstrated_after_another_way_was_taken() -> None:
    first = demonstrate(TASK, asked(), TOOLS)
    assert first is not None
    first["tool_calls"][0]["function"]["arguments"] = json.dumps({"query": "founder"})
    assert demonstrate(TASK, asked(*found(first, "Anna Voller founded Halda Works.")), TOOLS) is None
    assert demonstrate(TASK, asked(), []) is None
    assert demonstrate({**TASK, "decomposition": []}, asked(), TOOLS) is None


def test_only_what_follows_the_question_is_looked_at() -> None:
    example = found(demonstrate(TASK, asked(), TOOLS), "Anna Voller founded Halda Works.")
    messages = [{"role": "user", "content": "an example"}, *example, {"role": "user", "content": TASK["question"]}]
    assert query(demonstrate(TASK, messages, TOOLS)) == "Halda Works founder"


def test_answers_of_earlier_hops_stand_in_a_later_question() -> None:
    hops = [{"question": "q", "answer": letter} for letter in "abcdefghij"]
    hops.append({"question": "#1 and #10 of #2", "answer": "x"})
    assert query_of(hops, 10) == "a and j of b"
