"""What the reflecting model sees of a rollout."""

from __future__ import annotations

import random

from agentlightning_gepa.traces import fitting


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
