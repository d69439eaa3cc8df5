from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError, JoinError, LightningError, NotFound, RewardError
from agentlightning.rl.trajectory.build import UNJOINED, check_joins, trajectory
from agentlightning.rl.trajectory.joins import NEVER_ARRIVED
from agentlightning.training.metrics import request_counts
from agentlightning.types import Attempt, Call, Completion, Reward, Rollout, Sampling, Span, Task, Trajectory


def attempt(status: str = "succeeded", *, id: str = "a1", number: int = 1) -> Attempt:
    return Attempt(id=id, rollout_id="r", number=number, key="k", worker="w", status=status, started=0.0)  # type: ignore[arg-type]


def state(*attempts: Attempt, status: str | None = None) -> RolloutState:
    ended = attempts[-1].status if attempts else "cancelled"
    return RolloutState(
        rollout=Rollout(id="r", task=Task("t", "q"), mode="train", group="g", index=2),
        status=status or ("succeeded" if ended == "succeeded" else "failed"),  # type: ignore[arg-type]
        attempts=attempts,
    )


def call(index: int, **more: Any) -> Call:
    settings: dict[str, Any] = {
        "id": f"c{index}",
        "attempt_id": "a1",
        "status": "completed",
        "choices": 1,
        "request_hash": f"h{index}",
    }
    return Call(index=index, started=float(index), ended=index + 0.5, **{**settings, **more})


def completion(
    index: int, *, choice: int = 0, prompt: list[int] | None = None, response: tuple[int, ...] = (7, 8), **more: Any
) -> Completion:
    settings: dict[str, Any] = {
        "id": f"x{index}.{choice}",
        "logprobs": np.full(len(response), -0.5, np.float32),
        "sampling": Sampling(),
        "finish_reason": "stop",
    }
    return Completion(
        call_id=f"c{index}",
        attempt_id="a1",
        choice=choice,
        prompt_ids=prompt or [1, 2],
        response_ids=response,
        versions=np.zeros(len(response), np.int32),
        **{**settings, **more},
    )


def span(id: str, kind: str = "llm", started: float = 0.0, **more: Any) -> Span:
    return Span(id=id, attempt_id="a1", kind=kind, name=more.pop("name", id), started=started, ended=started + 0.4, **more)  # type: ignore[arg-type]


def reward(value: float, **more: Any) -> Reward:
    return Reward(attempt_id="a1", value=value, **more)


def read(
    calls: list[Call] | None = None,
    completions: list[Completion] | None = None,
    spans: list[Span] | None = None,
    rewards: list[Reward] | None = None,
    *,
    status: str = "succeeded",
    **options: Any,
) -> Trajectory:
    calls = [call(0)] if calls is None else calls
    completions = [completion(c.index) for c in calls if c.status == "completed"] if completions is None else completions
    a = attempt(status)
    records = AttemptRecords(
        attempt=a, calls=tuple(calls), completions=tuple(completions), spans=tuple(spans or ()), rewards=tuple(rewards or ())
    )
    return trajectory(state(a), (records,), **options)


# Rewards of the attempt


def test_the_returned_number_is_the_outcome_and_names_beside_it_are_only_kept() -> None:
    t = read(rewards=[reward(0.2, name="format"), reward(1.0, name="return")])
    assert t.reward == 1.0
    assert [r.name for r in t.rewards] == ["format", "return"]


def test_a_reward_that_is_returned_and_emitted_counts_once() -> None:
    assert read(rewards=[reward(0.7), reward(0.7, name="return")]).reward == 0.7


def test_a_reward_that_is_returned_and_emitted_unequally_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"returned 0\.0 and emitted the reward 1\.0"):
        read(rewards=[reward(1.0), reward(0.0, name="return")])


def test_without_a_returned_number_the_outcome_is_the_weighted_sum_of_the_names() -> None:
    rewards = [reward(1.0, name="correct"), reward(0.5, name="format")]
    assert read(rewards=rewards).reward == 1.5
    assert read(rewards=rewards, reward_weights={"correct": 0.9, "format": 0.1}).reward == pytest.approx(0.95)
    assert read(rewards=rewards, reward_weights={"format": 0}).reward == 1.0


def test_of_one_name_the_later_counts_and_both_are_kept() -> None:
    t = read(rewards=[reward(0.0), reward(1.0)])
    assert t.reward == 1.0
    assert len(t.rewards) == 2


def test_weights_join_a_returned_number_with_the_names_that_they_list() -> None:
    rewards = [reward(1.0, name="return"), reward(0.5, name="format"), reward(9.0, name="other")]
    assert read(rewards=rewards, reward_weights={"format": 0.1}).reward == pytest.approx(1.05)
    assert read(rewards=[reward(1.0, name="return"), reward(1.0)], reward_weights={"reward": 2.0}).reward == 2.0


def test_a_weighted_reward_that_has_not_come_leaves_the_attempt_unscored() -> None:
    t = read(rewards=[reward(1.0, name="correct")], reward_weights={"correct": 1, "judge": 1})
    assert t.reward is None
    assert any("'judge'" in said for said in t.diagnostics)


def test_never_scored_is_not_zero() -> None:
    t = read()
    assert t.reward is None
    assert any("not scored" in said for said in t.diagnostics)


def test_a_reward_that_is_not_finite_is_refused_by_name() -> None:
    with pytest.raises(RewardError, match=r"'judge'.*nan"):
        read(rewards=[reward(math.nan, name="judge")])


@pytest.mark.parametrize("status", ["failed", "timed_out", "cancelled"])
def test_an_attempt_that_did_not_succeed_has_no_outcome_but_the_penalty_of_the_policy(status: str) -> None:
    emitted = reward(0.4)
    assert read(rewards=[emitted], status=status).reward is None
    penalised = read(rewards=[emitted, reward(-1.0, name="penalty", source="runner")], status=status)
    assert penalised.reward == -1.0
    assert penalised.status == status
    assert penalised.transitions[0].trained


# Which attempt


def test_a_lost_attempt_is_never_used() -> None:
    lost, won = attempt("lost", id="a0"), attempt(number=2)
    theirs = AttemptRecords(
        attempt=lost,
        calls=(call(0, id="z", attempt_id="a0"),),
        completions=(completion(0, id="zz"),),
        rewards=(reward(9.0, name="return"),),
    )
    ours = AttemptRecords(attempt=won, calls=(call(0),), completions=(completion(0),), rewards=(reward(1.0, name="return"),))
    t = trajectory(state(lost, won), (theirs, ours))
    assert (t.attempt_id, t.reward, [x.completion_id for x in t.transitions]) == ("a1", 1.0, ["x0.0"])
    alone = trajectory(state(lost), (theirs,))
    assert (alone.status, alone.reward, alone.transitions) == ("lost", None, ())
    assert [(t.calls, t.other_calls), (alone.calls, alone.other_calls)] == [({"completed": 1}, 1), ({}, 1)]
    assert request_counts(t) == {"completed": 1, "other_attempts": 1}


def test_a_rollout_that_was_cancelled_in_the_queue_is_an_unscored_trajectory() -> None:
    t = trajectory(state(status="cancelled"), ())
    assert (t.status, t.reward, t.group, t.index) == ("cancelled", None, "g", 2)


def test_a_rollout_that_runs_has_no_trajectory_yet() -> None:
    with pytest.raises(LightningError, match="until it has ended"):
        trajectory(state(attempt("running"), status="running"), ())


def test_records_of_the_winner_must_be_given() -> None:
    with pytest.raises(NotFound, match="a1"):
        trajectory(state(attempt()), ())


# Counting


def test_every_request_is_counted_once_and_the_sum_is_the_number_of_requests() -> None:
    calls = [
        call(0),
        call(1, status="cancelled"),
        call(2, status="refused", choices=0),
        call(3, status="error", choices=0, detail="engine died"),
        call(4, supersedes="c3"),
        call(5),
        call(6, supersedes="c5"),
    ]
    t = read(calls, [completion(0), completion(1), completion(4), completion(5), completion(6)])
    assert t.calls == {"completed": 3, "cancelled": 1, "refused": 1, "superseded": 2}
    assert sum(t.calls.values()) == len(calls)
    assert [x.call_id for x in t.transitions] == ["c0", "c4", "c6"]
    said = "\n".join(t.diagnostics)
    assert "x1.0 (2 tokens): its call ended as 'cancelled'" in said
    assert "x5.0 (2 tokens): its call was superseded by c6" in said


def test_transitions_stand_in_order_of_arrival_then_choice() -> None:
    calls = [call(1, choices=2), call(0), call(2)]
    t = read(calls, [completion(2), completion(1, choice=1), completion(0), completion(1, choice=0)])
    assert [x.completion_id for x in t.transitions] == ["x0.0", "x1.0", "x1.1", "x2.0"]
    assert [x.index for x in t.transitions] == [0, 1, 2, 3]
    assert [x.turn for x in t.transitions] == [0, 1, 1, 2]


def test_a_call_that_says_another_number_of_choices_is_named() -> None:
    assert any("c0 says 3 choices and 1 completions" in said for said in read([call(0, choices=3)]).diagnostics)


def test_a_completion_without_its_call_is_named() -> None:
    t = read([call(0)], [completion(0), completion(5)])
    assert any("x5.0 (2 tokens): its call c5 is not recorded" in said for said in t.diagnostics)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logprobs": None}, "no logprobs were recorded"),
        ({"logprobs": [-0.5, math.nan]}, "1 of its 2 logprobs are missing"),
        ({"sampling": Sampling(top_p=0.9)}, "top_p"),
        ({"sampling": Sampling(temperature=0.0)}, "sampled greedily"),
        ({"sampling": Sampling(temperature=1e-50, top_p=0.5)}, "sampled greedily"),
        ({"finish_reason": "cancelled"}, "ended as 'cancelled'"),
    ],
)
def test_what_cannot_be_trained_says_why(changes: dict[str, Any], reason: str) -> None:
    t = read(completions=[completion(0, **changes)])
    (transition,) = t.transitions
    assert not transition.trained
    assert reason in str(transition.reason)
    assert any(reason in said and "transition 0" in said for said in t.diagnostics)


def test_zero_tokens_make_no_transition_and_are_named() -> None:
    t = read(completions=[completion(0, response=())])
    assert t.transitions == ()
    assert any("nothing was sampled" in said for said in t.diagnostics)
    assert t.calls == {"completed": 1}


def test_continues_is_the_index_of_a_transition_whose_tokens_the_prompt_starts_with() -> None:
    longer = [1, 2, 7, 8, 9]
    t = read([call(0), call(1), call(2)], [completion(0), completion(1, prompt=longer, continues="x0.0"), completion(2, continues="x0.0")])
    assert [x.continues for x in t.transitions] == [None, 0, None]
    assert any("says that it continues x0.0" in said for said in t.diagnostics)
    other = read([call(0), call(1)], [completion(0), completion(1, prompt=[3, 4, 7, 8, 9], continues="x0.0")])
    assert other.transitions[1].continues is None


# Agents and joining


def test_the_agent_comes_from_the_span_or_its_nearest_agent() -> None:
    spans = [
        span("root", "agent", name="team"),
        span("plan", "agent", name="planner", parent_id="root"),
        span("node", "note", parent_id="plan"),
        span("l0", call_id="c0", parent_id="node"),
        span("l1", call_id="c1", agent="writer", parent_id="plan"),
        span("l2", call_id="c2", parent_id="root"),
        span("l3", call_id="c3", parent_id="plan"),
    ]
    t = read([call(k) for k in range(4)], spans=spans)
    assert [x.agent for x in t.transitions] == ["planner", "writer", "team", "planner"]
    assert [x.turn for x in t.transitions] == [0, 0, 0, 1]


def test_a_synthesised_span_does_not_hide_the_adapters() -> None:
    t = read(spans=[span("s", call_id="c0"), span("l", call_id="c0", agent="writer")])
    assert t.transitions[0].agent == "writer"


def test_parents_in_a_circle_do_no_harm() -> None:
    t = read(spans=[span("l", call_id="c0", parent_id="n"), span("n", "note", parent_id="l")])
    assert t.transitions[0].agent is None


def test_only_selected_agents_are_trained() -> None:
    spans = [span("l0", call_id="c0", agent="write"), span("l1", call_id="c1", agent="check"), span("l2", call_id="c2", agent="rewrite")]
    t = read([call(k) for k in range(4)], spans=spans, agents=["*write"])
    assert [x.trained for x in t.transitions] == [True, False, True, False]
    assert t.transitions[1].reason == "agent 'check' is not selected"
    assert t.transitions[3].reason == UNJOINED


def test_a_span_without_an_id_joins_by_the_hash_of_its_request() -> None:
    spans = [
        span("l", started=0.1, agent="a", attributes={"request_hash": "h0"}),
        span("m", started=1.1, agent="b", attributes={"request_hash": "h1"}),
    ]
    assert [x.agent for x in read([call(0), call(1)], spans=spans).transitions] == ["a", "b"]


def test_equal_requests_join_by_arrival_only_where_the_order_is_beyond_doubt() -> None:
    calls = [call(0, request_hash="h"), call(1, request_hash="h")]

    def spans(second: float) -> list[Span]:
        return [
            span("b", started=second, agent="second", attributes={"request_hash": "h"}),
            span("a", started=0.0, agent="first", attributes={"request_hash": "h"}),
        ]

    assert [x.agent for x in read(calls, spans=spans(1.0)).transitions] == ["first", "second"]
    for doubtful in (read(calls, spans=spans(0.2)), read(calls, spans=spans(1.0)[:1])):
        assert [x.agent for x in doubtful.transitions] == [None, None]
        assert any("order is in doubt" in said for said in doubtful.diagnostics)


def test_a_span_of_a_superseded_call_joins_its_retry() -> None:
    t = read([call(0, status="error", choices=0), call(1, supersedes="c0")], spans=[span("l", call_id="c0", agent="a")])
    assert [x.agent for x in t.transitions] == ["a"]


def test_a_framework_call_that_never_reached_the_gateway_is_said_with_the_likely_cause() -> None:
    t = read(spans=[span("l", call_id="elsewhere"), span("m"), span("n", attributes={"error": "connection refused"})])
    said = [each for each in t.diagnostics if NEVER_ARRIVED in each]
    assert len(said) == 3
    assert "cache" in said[0]
    assert "connection refused" in said[2]
    told = read(spans=[span("l", attributes={"unjoined": "the answer named no call"})]).diagnostics
    assert any(f"{NEVER_ARRIVED}: the answer named no call" in each for each in told)


def test_the_run_stops_when_selected_agents_are_not_joined() -> None:
    joined = [span("l0", call_id="c0", agent="write")]
    with pytest.raises(JoinError, match=r"1 of 2 model calls"):
        check_joins([read([call(0), call(1)], spans=joined, agents=["write"])], ["write"])
    with pytest.raises(JoinError, match="adapter"):
        check_joins([read(spans=[span("s", call_id="c0")], agents=["write"])], ["write"])
    with pytest.raises(ConfigError, match="Did you mean 'write'"):
        check_joins([read(spans=joined, agents=["wrte"])], ["wrte"])
    check_joins([read(spans=joined, agents=["wr*"])], ["wr*"])


def test_a_selected_agent_that_has_not_acted_yet_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    joined = [span("l0", call_id="c0", agent="write")]
    check_joins([read(spans=joined, agents=["write", "rewrite"])], ["write", "rewrite"])
    assert [each.getMessage() for each in caplog.records] == [
        "agents: Unknown agent 'rewrite'. Did you mean 'write'? Use one of write. A run stops after its first step if nobody matches."
    ]


def test_a_pattern_that_matches_nobody_in_a_full_step_is_an_error_with_the_names_that_were_seen() -> None:
    joined = [span("l0", call_id="c0", agent="write"), span("l1", call_id="c1", agent="critic")]
    records = read([call(0), call(1)], spans=joined, agents=["write", "rewrite"])
    with pytest.raises(ConfigError, match=r"Unknown agent 'rewrite'.*critic, write\. If it acts only later, use a pattern"):
        check_joins([records], ["write", "rewrite"], full_step=True)
    check_joins([records], ["write", "c*"], full_step=True)


def test_without_a_selection_nothing_is_checked() -> None:
    check_joins([read()], None)


def test_the_run_stops_when_no_call_reached_the_gateway() -> None:
    with pytest.raises(JoinError, match="base_url"):
        check_joins([read([], spans=[span("l")])], None)
    check_joins([read(spans=[span("l", call_id="c0"), span("m")])], None)


# Rewards of spans


def told(t: Trajectory) -> list[list[float]]:
    return [[r.value for r in x.rewards] for x in t.transitions]


def test_a_reward_on_a_call_or_its_span_reaches_that_transition_and_not_the_outcome() -> None:
    t = read(
        [call(0), call(1)],
        spans=[span("l1", call_id="c1")],
        rewards=[reward(0.1, call_id="c0"), reward(0.2, span_id="l1"), reward(1.0, name="return")],
    )
    assert told(t) == [[0.1], [0.2]]
    assert t.reward == 1.0
    assert len(t.rewards) == 1


def test_a_reward_on_a_tool_reaches_the_choice_that_asked_for_it() -> None:
    asks = {"role": "assistant", "tool_calls": [{"id": "tool-9", "type": "function"}]}
    t = read(
        [call(0, choices=2), call(1)],
        [completion(0), completion(0, choice=1, message=asks), completion(1)],
        spans=[span("t", "tool", 1.5, attributes={"tool_call_id": "tool-9"}), span("l1", call_id="c1", started=1.0)],
        rewards=[reward(0.3, span_id="t")],
    )
    assert told(t) == [[], [0.3], []]


def test_a_reward_on_a_tool_without_an_id_reaches_the_nearest_earlier_call_of_its_agent() -> None:
    spans = [
        span("A", "agent", name="twin"),
        span("B", "agent", name="twin"),
        span("l0", call_id="c0", started=0.0, parent_id="A"),
        span("l1", call_id="c1", started=1.0, parent_id="B"),
        span("t", "tool", 1.5, parent_id="A"),
        span("l2", call_id="c2", started=2.0, parent_id="A"),
    ]
    assert told(read([call(0), call(1), call(2)], spans=spans, rewards=[reward(0.3, span_id="t")])) == [[0.3], [], []]


def test_a_reward_on_an_agent_reaches_who_asked_for_it_or_else_its_own_last_call() -> None:
    spans = [
        span("A", "agent"),
        span("l0", call_id="c0", started=0.0, parent_id="A"),
        span("t", "tool", 0.5, parent_id="A"),
        span("S", "agent", 0.6, parent_id="t"),
        span("l1", call_id="c1", started=1.0, parent_id="S"),
        span("l2", call_id="c2", started=2.0, parent_id="A"),
    ]
    t = read([call(0), call(1), call(2)], spans=spans, rewards=[reward(0.3, span_id="S"), reward(0.9, span_id="A")])
    assert told(t) == [[0.3], [], [0.9]]


def test_a_reward_that_reaches_no_transition_is_named() -> None:
    t = read(
        [call(0), call(1, status="cancelled", choices=0)],
        rewards=[reward(0.1, span_id="gone"), reward(0.2, call_id="gone"), reward(0.3, call_id="c1")],
    )
    assert told(t) == [[]]
    assert sum("not counted" in said for said in t.diagnostics) == 3


def test_a_reward_of_a_superseded_call_reaches_its_retry() -> None:
    t = read([call(0, status="error", choices=0), call(1, supersedes="c0")], rewards=[reward(0.5, call_id="c0")])
    assert told(t) == [[0.5]]


# Laws

OUTCOMES = st.sampled_from(["completed", "completed", "cancelled", "refused", "error"])


@st.composite
def attempts(draw: st.DrawFn) -> AttemptRecords:
    outcomes = draw(st.lists(OUTCOMES, max_size=6))
    calls, completions, spans, rewards = [], [], [], []
    for k, outcome in enumerate(outcomes):
        choices = draw(st.integers(0, 2)) if outcome in ("completed", "cancelled") else 0
        supersedes = f"c{draw(st.integers(0, k))}" if draw(st.booleans()) else None
        calls.append(call(k, status=outcome, choices=choices, supersedes=supersedes))
        for choice in range(choices):
            size = draw(st.integers(0, 3))
            logprobs = draw(st.sampled_from([None, [-0.5] * size, [math.nan] * size]))
            completions.append(
                completion(k, choice=choice, response=tuple(range(size)), logprobs=logprobs and np.array(logprobs, np.float32))
            )
        if draw(st.booleans()):
            spans.append(span(f"l{k}", started=float(k), call_id=f"c{k}", agent=draw(st.sampled_from(["a", "b", None]))))
        if draw(st.booleans()):
            rewards.append(reward(draw(st.floats(-1, 1)), call_id=f"c{draw(st.integers(0, 7))}"))
    rewards.append(reward(1.0, name="return"))
    return AttemptRecords(attempt=attempt(), calls=tuple(calls), completions=tuple(completions), spans=tuple(spans), rewards=tuple(rewards))


@given(attempts(), st.sampled_from([None, ["a"], ["*"]]))
@settings(max_examples=150, deadline=None)
def test_conversion_is_pure_and_accounts_for_every_request_and_every_token(records: AttemptRecords, agents: list[str] | None) -> None:
    before = copy.deepcopy(records)
    first = trajectory(state(records.attempt), (records,), agents=agents)
    assert records == before  # law 1
    assert first == trajectory(state(records.attempt), (records,), agents=agents)
    assert sum(first.calls.values()) == len(records.calls)
    told_of = {t.completion_id for t in first.transitions}
    said = "\n".join(first.diagnostics)
    for each in records.completions:  # law 2
        assert (each.id in told_of) != (f"no transition for completion {each.id} " in said)
    for t in first.transitions:
        assert t.trained == (t.reason is None)
        assert len(t.response_ids) == len(t.versions)
    own = {r.id for t in first.transitions for r in t.rewards}
    assert len(own) + said.count("not counted") == len(records.rewards) - 1  # law 8
    assert [t.index for t in first.transitions] == list(range(len(first.transitions)))
