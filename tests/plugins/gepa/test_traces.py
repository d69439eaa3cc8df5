"""What the reflecting model sees of a rollout."""

from __future__ import annotations

import random

from agentlightning_gepa.reflection import question
from agentlightning_gepa.traces import fitting, shown_task


def test_a_long_prompt_does_not_push_out_the_replies() -> None:
    assert fitting([3000, 40, 25], 600) == 535
    assert fitting([3000, 2000, 100], 600) == 250


def test_texts_that_fit_stay_whole_and_others_use_the_limit_up() -> None:
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randrange(0, 300) for _ in range(rng.randrange(0, 9))]
        limit = rng.randrange(1, 1500)
        cut = [min(length, fitting(lengths, limit)) for length in lengths]
        assert sum(cut) == sum(lengths) if sum(lengths) <= limit else limit - len(lengths) < sum(cut) <= limit


def test_a_long_field_of_a_task_does_not_push_out_the_others() -> None:
    task = {"schema": "CREATE TABLE head (age INT);\n" * 100, "question": "How many heads are older than 56?", "answer": 5}
    shown = shown_task(task, 300)
    assert isinstance(shown, dict)
    assert shown["question"] == task["question"]
    assert shown["answer"] == "5"
    assert shown["schema"].startswith("CREATE TABLE")
    assert "left out" in shown["schema"]
    assert shown_task("x" * 400, 300) == f"{'x' * 150}\n… (100 characters left out) …\n{'x' * 150}"
    assert shown_task([1, "è"], 300) == '[1, "è"]'


def test_a_template_shows_what_it_names_once() -> None:
    notes = ["It is too long.", "x" * 600], ["No number.", "It is too long."]
    examples = [
        {"Task": {"text": "<prompt>", "answer": "5"}, "Messages": "[user]\n<notes>", "Feedback": "Reward: 0.", "Notes": notes[0]},
        {"Task": "What?", "Messages": "[user]\nWhat?", "Feedback": "Reward: 1.", "Notes": notes[1]},
    ]
    assert question("<notes>\n\nImprove: <prompt>", "Be brief. <tasks>", examples) == (
        f"- It is too long.\n- {'x' * 250}\n… (100 characters left out) …\n{'x' * 250}\n- No number.\n\nImprove: Be brief. <tasks>"
    )
    assert question("<tasks>", "", examples) == (
        "# Example 1\n## Task\n### text\n<prompt>\n\n### answer\n5\n\n\n\n# Example 2\n## Task\nWhat?"
    )
    whole = question("<examples>", "", examples)
    assert whole in question(None, "Be brief.", examples)
    assert all(text in whole for text in ("<prompt>", "<notes>", "Reward: 1."))
    assert "Notes" not in whole
