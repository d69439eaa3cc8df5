"""What the conversion to a forest costs, in the tokens that it counts; seconds are measured by benchmarks/performance/conversion.py."""

from __future__ import annotations

import numpy as np
import pytest

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import trajectory, transition


def conversations(rollouts: int, turns: int, *, agents: int = 1, group: int = 1, continues: bool = True) -> Batch:
    """Prompts of 40 tokens, replies of 5, observations of 7; `group` rollouts share a prompt; agents act in turn, each in a history of its
    own."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(rollouts):
        if number % group == 0:
            prompts = [rng.integers(0, 1000, 40, np.int32) for _ in range(agents)]
        history, last, transitions = list(prompts), [None] * agents, []
        for index in range(turns):
            agent = index % agents
            reply = rng.integers(0, 1000, 5, np.int32)
            continued = last[agent] if continues else None
            turn = {"turn": index // agents, "agent": "AB"[agent], "id": f"{number}.{index}", "continues": continued}
            transitions.append(transition(index, history[agent], reply, **turn))
            history[agent] = np.concatenate([history[agent], reply, rng.integers(0, 1000, 7, np.int32)])
            last[agent] = index
        found.append(trajectory(number % group, *transitions, group=f"{number // group:04}", rollout_id=str(number)))
    return make_batch(found, [np.full(turns, 1.0)] * rollouts)


def chains(batch: Batch) -> int:
    return int((batch.end == np.arange(1, len(batch) + 1)).sum())


KINDS = [{}, {"agents": 2}, {"group": 4}, {"group": 400}, {"continues": False}, {"agents": 2, "continues": False}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("grows", ["rollouts", "turns"])
def test_ten_times_the_tokens_take_ten_times_the_work(kind, grows):
    small = conversations(4, 6, **kind).stats
    large = (conversations(40, 6, **kind) if grows == "rollouts" else conversations(4, 60, **kind)).stats
    times = large.captured_tokens / small.captured_tokens
    work = (large.compared_tokens + large.copied_tokens) / (small.compared_tokens + small.copied_tokens)
    assert times >= 10
    assert work <= 1.01 * times


@pytest.mark.parametrize("kind", [{}, {"agents": 2}], ids=str)
def test_a_captured_token_of_a_known_conversation_is_compared_or_copied_once(kind):
    stats = conversations(4, 6, **kind).stats
    assert stats.compared_tokens + stats.copied_tokens == stats.captured_tokens


@pytest.mark.parametrize("continues", [True, False])
def test_two_agents_that_take_turns_make_two_chains(continues):
    assert chains(conversations(3, 6, agents=2, continues=continues)) == 2 * 3
