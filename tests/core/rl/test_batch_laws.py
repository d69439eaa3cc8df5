"""Laws 1, 2, 4 and 6 of the batch as properties, over random attempts that branch, interleave, repeat and edit."""

from __future__ import annotations

import copy
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import cut_packs, leaf_rows, transition_rows
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Trajectory, Transition


def attempt(rng: random.Random, group: str, index: int, shared: list[int]) -> Trajectory:
    """Some chains that grow in turns; a turn may branch off, edit its history, or ask for several choices."""
    chains = [(shared, None) for _ in range(rng.randint(1, 3))]
    found: list[Transition] = []
    for _ in range(rng.randint(0, 5)):
        place = rng.randrange(len(chains))
        prompt, last = chains[place]
        prompt = prompt + [rng.randrange(3) for _ in range(rng.randint(0, 3))]
        if rng.random() < 0.2 and prompt:
            cut = rng.randrange(len(prompt))
            prompt, last = [*prompt[:cut], rng.randrange(3), *prompt[cut + 1 :]], None
        for _ in range(rng.choice((1, 1, 2))):
            response = [rng.randrange(3) for _ in range(rng.randint(0, 4))]
            logprobs = None if rng.random() < 0.1 else np.array([-rng.random() for _ in response], np.float32)
            found.append(
                transition(
                    len(found),
                    prompt,
                    response,
                    id=f"{group}{index}c{len(found)}",
                    logprobs=logprobs,
                    versions=[rng.randrange(3) for _ in response],
                    temperature=rng.choice((0.7, 1.0)),
                    turn=0,
                    continues=last if rng.random() < 0.5 else None,
                    trained=rng.random() < 0.9,
                )
            )
        chains[place] = (prompt + response, len(found) - 1)
    return trajectory(index, *found, group=group)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[Trajectory], list[np.ndarray]]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    found = []
    for group in "ab"[: rng.randint(1, 2)]:
        shared = [rng.randrange(3) for _ in range(rng.randint(0, 5))]
        found += [attempt(rng, group, index, shared) for index in range(rng.randint(1, 3))]
    values = [np.array([rng.choice((0.0, 1.0, -1.0, np.nan)) for _ in t.transitions]) for t in found]
    return found, values


def ancestors(parent: np.ndarray, token: int) -> list[int]:
    found = []
    while token >= 0:
        found.append(token)
        token = int(parent[token])
    return found[::-1]


@given(inputs())
@settings(max_examples=150, deadline=None)
def test_conversion_is_pure_and_a_permuted_input_gives_the_same_batch(given_):
    trajectories, values = given_
    before = copy.deepcopy(trajectories)
    first = make_batch(trajectories, values)
    assert first == make_batch(trajectories, values)
    assert first == make_batch(trajectories[::-1], values[::-1])
    assert trajectories == before


@given(inputs())
@settings(max_examples=200, deadline=None)
def test_every_sampled_token_stands_after_exactly_its_own_prompt_or_is_named(given_):
    trajectories, values = given_
    batch = make_batch(trajectories, values)
    named = {u.completion_id for u in batch.untrained}
    pairs = zip(trajectories, values, strict=True)
    by_id = {t.completion_id: (each, t, a) for each, v in pairs for t, a in zip(each.transitions, v, strict=True)}
    assert {name for name, (_, t, _) in by_id.items() if len(t.response_ids)} == named ^ set(batch.completion_ids)
    sampled_by = np.append(batch.transition_rollout, -1)
    for number, name in enumerate(batch.completion_ids):
        each, t, advantage = by_id[name]
        tokens = np.flatnonzero(batch.transition == number)
        tokens = tokens[np.argsort(batch.position[tokens])]
        line = ancestors(batch.parent, int(tokens[-1]))
        assert batch.token_ids[line].tolist() == [*t.prompt_ids.tolist(), *t.response_ids.tolist()]
        assert line[len(t.prompt_ids) :] == tokens.tolist()
        assert batch.position[line].tolist() == list(range(len(line)))
        np.testing.assert_array_equal(batch.rollout_logprobs[tokens], t.logprobs)
        np.testing.assert_array_equal(batch.version[tokens], t.versions)
        assert (batch.temperature[tokens] == np.float32(t.temperature)).all()
        assert (batch.advantage[tokens] == advantage).all()
        assert batch.rollout_ids[batch.transition_rollout[number]] == each.rollout_id
        owners = set(sampled_by[batch.transition[line]].tolist())
        assert owners <= {-1, int(batch.transition_rollout[number])}  # never through another attempt


@given(inputs())
@settings(max_examples=150, deadline=None)
def test_arrays_have_one_length_and_end_is_the_attention_mask(given_):
    batch = make_batch(*given_)
    size = len(batch)
    for name in ("parent", "position", "end", "transition", "rollout_logprobs", "version", "temperature", "advantage", "weight"):
        assert len(getattr(batch, name)) == size
    for token in range(size):
        visible = [j for j in range(size) if j <= token < batch.end[j]]
        assert visible == ancestors(batch.parent, token)
    context = batch.transition < 0
    keys = list(zip(batch.parent[context].tolist(), batch.token_ids[context].tolist(), strict=True))
    assert len(keys) == len(set(keys))  # context stands once


@given(inputs(), st.sampled_from(["sequence_mean", "token_mean", "constant_length"]))
@settings(max_examples=150, deadline=None)
def test_weights_are_those_of_the_full_batch_however_rollouts_fragment(given_, loss_aggregation):
    trajectories, values = given_
    batch = make_batch(trajectories, values, loss_aggregation=loss_aggregation, length=7)
    usable = [
        sum(
            len(t.response_ids)
            for t, a in zip(each.transitions, v, strict=True)
            if t.trained and t.logprobs is not None and len(t.prompt_ids) and a == a
        )
        for each, v in zip(trajectories, values, strict=True)
    ]
    rollouts = sum(bool(np.isfinite(v).any()) or not len(v) for v in values)
    for number, rollout_id in enumerate(batch.rollout_ids):
        mine = batch.weight[np.isin(batch.transition, np.flatnonzero(batch.transition_rollout == number)) & batch.trained]
        tokens = next(n for each, n in zip(trajectories, usable, strict=True) if each.rollout_id == rollout_id)
        totals = {"sequence_mean": 1 / rollouts, "token_mean": tokens / max(1, sum(usable)), "constant_length": tokens / (rollouts * 7)}
        total = totals[loss_aggregation]
        assert np.isclose(mine.sum(), total)
        assert (mine == mine[0]).all()
    assert (batch.weight[~batch.trained] == 0).all()


@given(inputs(), st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_every_split_trains_every_token_once_below_all_its_ancestors(given_, spare):
    batch = make_batch(*given_)
    budget = int(batch.position.max(initial=0)) + 1 + spare
    for split in (cut_packs(batch, budget), leaf_rows(batch), transition_rows(batch)):
        trained = np.concatenate([np.empty(0, np.int32), *(p.index[p.trained] for p in split)])
        assert sorted(trained.tolist()) == np.flatnonzero(batch.trained).tolist()
        for pack in split:
            inner = np.append(pack.index, -1)
            np.testing.assert_array_equal(inner[pack.parent], batch.parent[pack.index])
            np.testing.assert_array_equal(pack.position, batch.position[pack.index])
            for token in range(len(pack)):
                assert [j for j in range(len(pack)) if j <= token < pack.end[j]] == ancestors(pack.parent, token)
    for pack in cut_packs(batch, budget):
        assert len(pack) <= budget
        assert all(pack.trained[token : pack.end[token]].any() for token in range(len(pack)))  # no context without a use
