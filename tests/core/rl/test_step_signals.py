"""Step signals become rewards of steps, purely and once each, and reach the transitions that they are about."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from test_trajectory import attempt, call, completion, read, reward, span

from agentlightning.config.parts import build_step_rewards
from agentlightning.config.schema import Config
from agentlightning.contracts.hookspecs import hookimpl
from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import ConfigError, RewardError
from agentlightning.registry.registry import Registry
from agentlightning.rl.trajectory.step_rewards import STEP_SIGNAL, StepReward
from agentlightning.rl.trajectory.step_rewards.tools import tool_empty, tool_failed
from agentlightning.rl.trajectory.step_rewards.truncated import truncated
from agentlightning.settings import convert, type_hints
from agentlightning.types import Call, Span, Trajectory


def tool(id: str, started: float, **more: Any) -> Span:
    return span(id, "tool", started, attributes=more.pop("attributes", {"output": "5"}), **more)


def records(*spans: Span, **more: Any) -> AttemptRecords:
    return AttemptRecords(attempt=attempt(), spans=spans, **more)


def earned(t: Trajectory) -> list[list[tuple[str, float]]]:
    """Names and values by transition."""
    return [[(r.name, r.value) for r in each.rewards] for each in t.transitions]


def lookups(records: AttemptRecords) -> Iterable[Span]:
    """An own signal: tools that are called look."""
    return (each for each in records.spans if each.name == "look")


def refusals(records: AttemptRecords) -> Iterable[Call]:
    """An own signal: the call before one that was refused."""
    return [before for before, each in zip(records.calls, records.calls[1:], strict=False) if each.status == "refused"]


def test_a_failed_tool_is_one_with_an_error_and_of_nested_ones_the_outer() -> None:
    spans = [
        span("agent", "agent"),
        tool("good", 1),
        tool("bad", 2, attributes={"error": "ValueError: no", "output": "An error occurred"}),
        tool("inner", 3, parent_id="bad", attributes={"error": "ValueError: no"}),
        span("helper", "agent", 4, parent_id="bad"),
        tool("asked", 5, parent_id="helper", attributes={"error": "KeyError"}),
        tool("guard", 6, attributes={"error": "tripped", "guardrail": True}),
        span("model", "llm", 7, attributes={"error": "500"}),
        span("node", "agent", 8, attributes={"error": "500"}),
    ]
    assert [each.id for each in tool_failed(records(*spans))] == ["bad", "asked"]


@pytest.mark.parametrize(
    ("output", "empty"),
    [("", True), (" \n", True), ([], True), ({}, True), (None, True), ("[]", True), ("{}", True), ("null", True), ("None", True),
     ("()", True), (0, False), (False, False), ("0", False), ([""], False), ("none found", False)],
)  # fmt: skip
def test_an_empty_tool_gave_an_empty_text_or_list_or_null(output: Any, empty: bool) -> None:
    spans = [
        tool("t", 0, attributes={"output": output}),
        tool("f", 1, attributes={"output": output, "error": "x"}),
        tool("s", 2, attributes={}),
    ]
    assert [each.id for each in tool_empty(records(*spans))] == ["t"] * empty


def test_a_truncated_reply_is_blamed_alone_among_the_choices_of_its_call() -> None:
    completions = [completion(0, choice=0), completion(0, choice=1, finish_reason="length"), completion(1, finish_reason="length")]
    t = read([call(0, choices=2), call(1)], completions, step_rewards=[StepReward("truncated", -0.1, truncated)])
    assert earned(t) == [[], [("truncated", -0.1)], [("truncated", -0.1)]]
    assert [r.call_id for each in t.transitions for r in each.rewards] == ["c0", "c1"]


def test_the_reward_of_a_fact_reaches_the_call_that_asked_and_not_the_outcome() -> None:
    asking = completion(0, message={"tool_calls": [{"id": "one"}, {"id": "two"}]})
    spans = [
        tool("first", 3, attributes={"tool_call_id": "one", "error": "no"}),
        tool("second", 3.1, attributes={"tool_call_id": "two", "error": "no"}),
        tool("nobody asked by name", 3.2, attributes={"error": "no"}),
        span("s0", "llm", 0, call_id="c0"),
        span("s1", "llm", 2, call_id="c1"),
    ]
    given = [StepReward("tool_failed", -0.2, tool_failed), StepReward("lookups", 0.5, lookups)]
    t = read([call(0), call(1)], [asking, completion(1)], spans, [reward(1.0, name="return")], step_rewards=given)
    assert earned(t) == [[("tool_failed", -0.2)] * 2, [("tool_failed", -0.2)]]
    assert t.reward == 1.0
    assert {r.source for each in t.transitions for r in each.rewards} == {STEP_SIGNAL}
    assert t.diagnostics == ()


def test_the_reward_of_a_call_may_be_of_the_one_before_and_what_reaches_none_is_said() -> None:
    calls = [call(0), call(1, status="refused", choices=0)]
    t = read(calls, step_rewards=[StepReward("refusals", -1.0, refusals), StepReward("all", 0.5, lambda records: records.calls)])
    assert earned(t) == [[("refusals", -1.0), ("all", 0.5)]]
    assert "reward 'all' (0.5) belongs to call c1, which left no transition, and is not counted" in t.diagnostics


def test_reading_twice_gives_the_same_rewards_and_changes_nothing() -> None:
    spans = [tool("bad", 3, attributes={"error": "no"}), span("s0", "llm", 0, call_id="c0")]
    rewards = [reward(1.0, name="return"), reward(0.25, name="judge", span_id="bad")]
    kept = copy.deepcopy((spans, rewards))
    given = [StepReward("tool_failed", -0.2, tool_failed), StepReward("again", -0.2, tool_failed)]
    first, second = (read(spans=spans, rewards=rewards, step_rewards=given) for _ in range(2))
    assert first == second
    assert (spans, rewards) == kept
    assert sorted(earned(first)[0]) == [("again", -0.2), ("judge", 0.25), ("tool_failed", -0.2)]
    assert len({r.id for r in first.transitions[0].rewards}) == 3
    assert earned(read(spans=spans, rewards=rewards)) == [[("judge", 0.25)]]


def test_what_is_shown_twice_counts_once() -> None:
    def twice(records: AttemptRecords) -> Iterator[Span]:
        yield from records.spans
        yield from records.spans

    spans = [tool("t", 3), span("s0", "llm", 0, call_id="c0")]
    assert earned(read(spans=spans, step_rewards=[StepReward("twice", 1.0, twice)])) == [[("twice", 1.0)] * 2]


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        (lambda records: records.nothing, r"Attempt a1: the signal 'own' raised AttributeError"),
        (lambda records: [True], r"the signal 'own' returned True. Return spans, calls or completions of the attempt's records"),
        (lambda records: [tool("elsewhere", 0)], r"the signal 'own' returned Span.*Return spans, calls or completions"),
    ],
)
def test_a_fact_that_cannot_be_told_is_an_error_with_its_name(signal: Any, said: str) -> None:
    with pytest.raises(RewardError, match=re.compile(said, re.DOTALL)):
        read(step_rewards=[StepReward("own", 1.0, signal)])


def test_step_rewards_are_named_facts_or_own_functions() -> None:
    class Plugin:
        @hookimpl
        def register_step_signals(self, register: Any) -> None:
            register("refusals", refusals)

    plugins = Registry({"p": Plugin()})
    first, second = build_step_rewards({"refusals": -1, f"{__name__}:lookups": 0.5}, plugins)
    assert (first.name, first.value, first.signal) == ("refusals", -1, refusals)
    assert (second.name, second.signal.__name__) == (f"{__name__}:lookups", "lookups")
    with pytest.raises(ConfigError, match=r"step_rewards\.refusal: Unknown step signal 'refusal'\. Did you mean 'refusals'\?"):
        build_step_rewards({"refusal": 1}, plugins)


def test_a_step_reward_is_a_finite_number() -> None:
    with pytest.raises(ConfigError, match=r"step_rewards\.truncated is nan\. Use a finite number"):
        convert({"truncated": float("nan")}, type_hints(Config)["step_rewards"], "step_rewards")
