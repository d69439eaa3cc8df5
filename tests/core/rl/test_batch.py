"""The forest batch on examples: merging, lineage, weights, diagnostics, packs."""

from __future__ import annotations

import numpy as np
import pytest

from agentlightning.contracts.batch import Batch
from agentlightning.errors import ConfigError, TrainerError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import cut_packs, leaf_rows, transition_rows
from agentlightning.testing.rollouts import trajectory, transition


def path(batch: Batch, token: int) -> list[int]:
    found = []
    while token >= 0:
        found.append(token)
        token = int(batch.parent[token])
    return found[::-1]


def chain(batch: Batch, name: int) -> list[int]:
    """Token ids from the root to the last token of a transition."""
    return batch.token_ids[path(batch, int(np.flatnonzero(batch.transition == name)[-1]))].tolist()


def test_a_shared_prompt_stands_once_and_each_reply_is_its_own():
    same = [trajectory(k, transition(0, [1, 2, 3], [7, 8], id=f"c{k}", versions=3)) for k in range(2)]
    batch = make_batch(same, [[1.0], [-1.0]])
    assert batch.token_ids.tolist() == [1, 2, 3, 7, 8, 7, 8]
    assert batch.parent.tolist() == [-1, 0, 1, 2, 3, 2, 5]
    assert batch.position.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert batch.end.tolist() == [7, 7, 7, 5, 5, 7, 7]
    assert batch.advantage.tolist() == [0, 0, 0, 1, 1, -1, -1]
    assert batch.weight.tolist() == [0, 0, 0, 0.25, 0.25, 0.25, 0.25]
    assert batch.version.tolist() == [-1, -1, -1, 3, 3, 3, 3]
    assert np.isnan(batch.rollout_logprobs[:3]).all()
    assert batch.rollout_ids == ("g0", "g1")
    assert batch.groups == ("g",)


def test_a_later_turn_runs_through_the_sampled_tokens_of_the_first():
    batch = make_batch([trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 2, 3, 4, 5], [6], continues=0))], [[1, 1]])
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.transition.tolist() == [-1, -1, 0, 0, -1, 1]


@pytest.mark.parametrize("known", [True, False])
def test_every_attempt_runs_through_its_own_sampled_tokens(known: bool):
    continues = 0 if known else None
    each = [
        trajectory(k, transition(0, [1, 2], [3, k], id=f"{k}.0"), transition(1, [1, 2, 3, k, 5], [6], id=f"{k}.1", continues=continues))
        for k in (7, 8)
    ]
    batch = make_batch(each, [[1, 1], [-1, -1]])
    assert batch.token_ids.tolist() == [1, 2, 3, 7, 5, 6, 3, 8, 5, 6]


@pytest.mark.parametrize("known", [True, False])
def test_interleaved_sub_agents_make_two_chains(known: bool):
    """A1 B1 A2 B2, with the lineage as the gateway knows it, and without it."""
    a1, b1 = ([1, 1], [10, 11]), ([2, 2], [20, 21])
    a2, b2 = ([1, 1, 10, 11, 5], [12]), ([2, 2, 20, 21, 6], [22])
    each = [
        transition(0, *a1, agent="A"),
        transition(1, *b1, agent="B"),
        transition(2, *a2, agent="A", continues=0 if known else None),
        transition(3, *b2, agent="B", continues=1 if known else None),
    ]
    batch = make_batch([trajectory(0, *each)], [[1, 1, 1, 1]])
    assert batch.token_ids.tolist() == [1, 1, 10, 11, 5, 12, 2, 2, 20, 21, 6, 22]
    assert len(leaf_rows(batch)) == 2


def test_best_of_n_with_identical_prompts_and_replies_loses_nothing():
    batch = make_batch([trajectory(0, *(transition(k, [1, 2], [3, 4]) for k in range(3)))], [[1, 1, 1]])
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 3, 4, 3, 4]
    assert batch.stats.trained_tokens == 6


def test_a_follow_up_continues_the_choice_it_names_and_else_the_first():
    choices = [transition(k, [1], [3, 4]) for k in range(3)]
    for continues, expected in ((2, 2), (None, 0)):
        batch = make_batch([trajectory(0, *choices, transition(3, [1, 3, 4, 9], [5], continues=continues))], [[1] * 4])
        last = int(np.flatnonzero(batch.transition == 3)[0])
        assert batch.transition[path(batch, last)].tolist() == [-1, expected, expected, -1, 3]


def test_an_edited_history_leaves_the_chain_where_it_was_edited():
    batch = make_batch([trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 9, 3, 4, 5], [6]))], [[1, 1]])
    assert chain(batch, 0) == [1, 2, 3, 4]
    assert chain(batch, 1) == [1, 9, 3, 4, 5, 6]
    assert len(batch) == 9  # token 1 stands once


def test_re_tokenised_context_keeps_what_was_sampled_and_trains_both():
    """The reply 3 4 came back as the one token 34."""
    batch = make_batch([trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 2, 34, 5], [6], continues=0))], [[1, 1]])
    assert chain(batch, 0) == [1, 2, 3, 4]
    assert chain(batch, 1) == [1, 2, 34, 5, 6]
    assert batch.trained_tokens == 3


def test_context_never_runs_through_the_sampled_tokens_of_another_attempt():
    one = trajectory(0, transition(0, [1], [2, 3]))
    two = trajectory(1, transition(0, [1, 2, 3, 4], [5], id="other"))
    batch = make_batch([one, two], [[1], [-1]])
    assert (batch.transition[path(batch, int(np.flatnonzero(batch.transition == 1)[0]))] == [-1, -1, -1, -1, 1]).all()


def test_every_sampled_token_that_is_not_trained_is_named_with_a_reason():
    each = trajectory(
        0,
        transition(0, [1], [2, 3], trained=False, reason="agent 'judge' is not selected"),
        transition(1, [1], [4], logprobs=None),
        transition(2, [1], [5, 6], logprobs=np.array([np.nan, -1], np.float32)),
        transition(3, [1], [7]),
        transition(4, [], [7]),
        transition(5, [1], [8], temperature=0.0),
        transition(6, [1, 2, 3, 9], [5]),
        transition(7, [1], []),
        transition(8, [1], [8], temperature=1e-50),
    )
    quiet = trajectory(0, transition(0, [1], [5, 5], id="q"), group="h")
    batch = make_batch([each, quiet], [[1, 1, 1, np.nan, 1, 1, 1, 1, 1], [0]])
    assert [(u.completion_id, u.tokens, u.reason) for u in batch.untrained] == [
        ("c0", 2, "agent 'judge' is not selected"),
        ("c1", 1, "no logprobs were recorded"),
        ("c2", 2, "1 of its logprobs are missing"),
        ("c3", 1, "earned no credit"),
        ("c4", 1, "no prompt predicts its first token"),
        ("c5", 1, "sampled greedily"),
        ("c8", 1, "sampled greedily"),
        ("q", 2, "zero-variance group"),
    ]
    assert batch.token_ids.tolist() == [1, 2, 3, 9, 5]
    assert batch.transition.tolist() == [-1, -1, -1, -1, 0]
    assert batch.stats.sampled_tokens == batch.trained_tokens + sum(u.tokens for u in batch.untrained)


def test_an_excluded_group_whose_advantages_differ_is_no_zero_variance_group():
    stale = [trajectory(k, transition(0, [1], [2], id=f"s{k}", trained=False, reason="stale")) for k in range(2)]
    batch = make_batch(stale, [[1], [-1]])
    assert (batch.stats.zero_variance_groups, batch.trained_tokens) == (0, 0)


def test_a_group_without_signal_costs_nothing_and_counts_in_the_denominator():
    loud = [trajectory(k, transition(0, [1], [2, 3], id=f"l{k}")) for k in range(2)]
    quiet = [trajectory(k, transition(0, [1], [2, 3], id=f"q{k}"), group="q") for k in range(2)]
    batch = make_batch(loud + quiet, [[1], [-1], [0], [0]])
    assert batch.stats.zero_variance_groups == 1
    assert batch.stats.trained_fraction == 0.5
    assert batch.weight.sum() == pytest.approx(0.5)
    assert make_batch(loud + quiet, [[1], [-1], [0], [0]], loss_aggregation="token_mean").weight.sum() == pytest.approx(0.5)
    empty = make_batch(quiet, [[0], [0]])
    assert (len(empty), empty.trained_tokens, cut_packs(empty, 8), leaf_rows(empty)) == (0, 0, [], [])
    assert len(make_batch([], [])) == 0


def test_a_scored_rollout_that_never_called_the_model_counts_in_the_denominator():
    batch = make_batch([trajectory(0, transition(0, [1], [2])), trajectory(1), trajectory(2, reward=None)], [[1], [], []])
    assert batch.stats.scored_rollouts == 2
    assert batch.weight.sum() == pytest.approx(0.5)


def test_constant_weights_need_a_length():
    each = [trajectory(0, transition(0, [1], [2, 3]))]
    assert make_batch(each, [[1]], loss_aggregation="constant_length", length=10).weight.tolist() == [0, 0.1, 0.1]
    with pytest.raises(ConfigError, match="Set length"):
        make_batch(each, [[1]], loss_aggregation="constant_length")
    with pytest.raises(ConfigError, match="'rolout'"):
        make_batch(each, [[1]], loss_aggregation="rolout")  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_are_refused_by_name():
    each = [trajectory(0, transition(0, [1], [2, 3]))]
    with pytest.raises(TrainerError, match=r"g0 has 1 transitions and advantages of shape \(3,\)"):
        make_batch(each, [[1, 2, 3]])
    with pytest.raises(TrainerError, match=r"c0 has an advantage for 1 of its 2 tokens"):
        make_batch(each, [[1, np.nan]])
    with pytest.raises(TrainerError, match=r"g0 has returns of shape \(1,\)"):
        make_batch(each, [[1]], critic=[(np.zeros(2), np.zeros(1))])
    with pytest.raises(TrainerError, match="infinite"):
        make_batch(each, [[np.inf]])
    with pytest.raises(TrainerError, match="Pass one array for each"):
        make_batch(each, [])
    with pytest.raises(TrainerError, match="c0 has 2 tokens, 2 versions and 1 logprobs"):
        make_batch([trajectory(0, transition(0, [1], [2, 3], logprobs=np.array([-1], np.float32)))], [[1]])


def test_advantages_values_and_returns_of_tokens_stand_at_their_tokens():
    """Two turns of which the second goes on from the first, and a rollout that shares the prompt."""
    each = [
        trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 2, 3, 4, 5], [6, 7])),
        trajectory(1, transition(0, [1, 2], [8], id="other")),
    ]
    tokens = [np.array([0.1, 0.2, 0.3, 0.4]), np.array([-0.5])]
    critic = [(10 * t, 100 * t) for t in tokens]
    batch = make_batch(each, tokens, critic=critic)
    assert batch.value is not None
    assert batch.returns is not None
    for ids, want in (([3, 4, 6, 7], tokens[0]), ([8], tokens[1])):
        places = [batch.token_ids.tolist().index(t) for t in ids]
        for array, scale in ((batch.advantage, 1), (batch.value, 10), (batch.returns, 100)):
            np.testing.assert_array_equal(array[places], scale * want)
    assert np.isnan(batch.value[~batch.trained]).all()
    again = batch.by_transition(batch.advantage)
    assert {name: some.tolist() for name, some in again.items()} == {"c0": [0.1, 0.2], "c1": [0.3, 0.4], "other": [-0.5]}


def test_a_single_path_longer_than_a_pack_is_refused_by_name():
    batch = make_batch([trajectory(0, transition(0, [1, 2, 3], [4, 5]))], [[1]])
    assert len(cut_packs(batch, 5)) == 1
    with pytest.raises(TrainerError, match=r"Completion c0 of rollout g0 ends 5 tokens after its root, and tokens_per_pack is 4"):
        cut_packs(batch, 4)


def test_packs_are_cut_where_they_share_least():
    """Two groups of two, each of 4 shared and 2 x 2 own tokens: a budget of 8 repeats nothing."""
    each = [trajectory(k, transition(0, [g, 1, 2, 3], [4, 5], id=f"{g}{k}"), group=f"g{g}") for g in (8, 9) for k in range(2)]
    batch = make_batch(each, [[1], [-1], [1], [-1]])
    assert [len(p) for p in cut_packs(batch, 16)] == [16]
    assert [len(p) for p in cut_packs(batch, 15)] == [8, 8]
    assert [len(p) for p in cut_packs(batch, 7)] == [6, 6, 6, 6]


def test_packs_of_some_rollouts_hold_only_what_these_need():
    each = [trajectory(k, transition(0, [1, 2], [3 + k], id=f"c{k}")) for k in range(3)]
    (pack,) = cut_packs(make_batch(each, [[1], [-1], [2]]), 10, rollouts=[0, 2])
    assert pack.index.tolist() == [0, 1, 2, 4]
    assert pack.parent.tolist() == [-1, 0, 1, 1]
    assert pack.end.tolist() == [4, 4, 3, 4]
    assert pack.trained.tolist() == [False, False, True, True]


def test_one_row_for_each_transition_repeats_the_history():
    batch = make_batch([trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 2, 3, 4, 5], [6]))], [[1, 1]])
    assert [batch.token_ids[r.index].tolist() for r in transition_rows(batch)] == [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
    assert [r.trained.sum() for r in transition_rows(batch)] == [2, 1]
    assert [len(r) for r in leaf_rows(batch)] == [6]


def test_packs_and_rows_of_some_transitions_train_these_alone():
    batch = make_batch([trajectory(0, transition(0, [1, 2], [3, 4]), transition(1, [1, 2, 3, 4, 5], [6]))], [[1, 1]])
    for chosen, tokens, trained in (([True, False], [1, 2, 3, 4], [3, 4]), ([False, True], [1, 2, 3, 4, 5, 6], [6])):
        for packs in (
            cut_packs(batch, 10, None, np.array(chosen)),
            leaf_rows(batch, None, np.array(chosen)),
            transition_rows(batch, None, np.array(chosen)),
        ):
            (pack,) = packs
            assert batch.token_ids[pack.index].tolist() == tokens
            assert batch.token_ids[pack.index[pack.trained]].tolist() == trained
    assert [cut(batch, *rest) for cut, rest in ((transition_rows, ([],)), (leaf_rows, ([],)), (cut_packs, (10, [])))] == [[], [], []]
