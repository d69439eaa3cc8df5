"""Spans of one trace give one tree, in whatever order and batches they come."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.capture.otel.assembly import Assembly
from agentlightning.capture.otel.meaning import EndedSpan
from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Attempt, Span

ATTEMPT = Attempt(id="a1", rollout_id="r1", number=1, key="k", worker="w", status="running", started=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "agent": {"gen_ai.operation.name": "invoke_agent"}, "tool": {"gen_ai.operation.name": "execute_tool"},
    "llm": {"gen_ai.operation.name": "chat"}, "plumbing": {},
}  # fmt: skip


def ended(id: str, kind: str, parent: str | None, at: float = 0.0, **attributes: Any) -> EndedSpan:
    told = {"gen_ai.response.id": f"{int(id, 16):032x}"} if kind == "llm" else {}
    return EndedSpan(id=id, parent_id=parent, name=id, started=at, ended=at + 1, attributes={**KINDS[kind], **told, **attributes})


def above(records: list[Span]) -> dict[str, str | None]:
    """What a reader of the attempt sees: the parent of each span."""
    return {span.id: span.parent_id for span in AttemptRecords(attempt=ATTEMPT, spans=tuple(records)).spans}


@st.composite
def traces(draw: st.DrawFn) -> list[EndedSpan]:
    """A tree of spans, in which a model call has nothing below."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12))
    spans: list[EndedSpan] = []
    for number, kind in enumerate(kinds, 1):
        parents = [None, *(span.id for span in spans if KINDS["llm"].items() - span.attributes.items())]
        spans.append(ended(f"{number:x}", kind, draw(st.sampled_from(parents))))
    return spans


def nearest(spans: list[EndedSpan]) -> dict[str, str | None]:
    """The parent of each span that is no plumbing, by definition."""
    parents = {span.id: span.parent_id for span in spans}
    recorded = {span.id for span in spans if span.attributes}
    expected: dict[str, str | None] = {}
    for id in recorded:
        parent = parents[id]
        while parent is not None and parent not in recorded:
            parent = parents[parent]
        expected[id] = parent
    return expected


@given(traces(), st.randoms(use_true_random=False), st.integers(1, 4), st.booleans())
def test_every_order_and_every_batching_give_the_same_tree(trace: list[EndedSpan], random: Any, size: int, restart: bool) -> None:
    arrived = list(trace)
    random.shuffle(arrived)
    records: list[Span] = []
    assembly = Assembly("a1")
    for start in range(0, len(arrived), size):
        records += assembly.add(arrived[start : start + size])
    assert above(records) == nearest(trace)
    assert assembly.add(arrived) == []  # a batch that is sent again gives nothing


@given(traces(), st.integers(1, 4))
def test_a_gateway_that_starts_anew_goes_on_from_the_store(trace: list[EndedSpan], size: int) -> None:
    arrived, records = list(reversed(trace)), list[Span]()
    for start in range(0, len(arrived), size):
        before = AttemptRecords(attempt=ATTEMPT, spans=tuple(records)).spans
        records += Assembly("a1", before).add(arrived[start : start + size])
    assert above(records) == nearest(trace)


def test_a_model_call_around_a_model_call_is_recorded_once_in_one_batch_and_in_two() -> None:
    inner, outer, agent = ended("3", "llm", "2"), ended("2", "llm", "1"), ended("1", "agent", None)
    for batches in ([[inner, outer, agent]], [[agent, outer, inner]], [[inner], [outer], [agent]]):
        assembly = Assembly("a1")
        assert above([record for batch in batches for record in assembly.add(batch)]) == {"3": "1", "1": None}


def test_a_call_that_another_span_of_the_store_names_is_recorded_once() -> None:
    ours = Span(id="x", attempt_id="a1", kind="llm", name="m", call_id=f"{3:032x}")
    assert Assembly("a1", [ours]).add([ended("3", "llm", None)]) == []


def test_links_in_a_circle_end() -> None:
    links = [
        Span(id="1", attempt_id="a1", kind="link", name="", parent_id="2"),
        Span(id="2", attempt_id="a1", kind="link", name="", parent_id="1"),
    ]
    assert above([*links, Span(id="3", attempt_id="a1", kind="tool", name="t", parent_id="1")]) == {"3": None}
    assert Assembly("a1").add([ended("1", "tool", "2"), ended("2", "tool", "1")]) != []


def test_a_step_names_the_agent_around_it_also_from_an_earlier_batch() -> None:
    scope = "openinference.instrumentation.llama_index"

    def span(id: str, name: str, parent: str | None, output: str = "") -> EndedSpan:
        attributes = {"openinference.span.kind": "CHAIN", "output.value": output}
        return EndedSpan(id=id, parent_id=parent, name=name, scope=scope, started=0.0, ended=1.0, attributes=attributes)

    step, run = (
        span("2", "BaseWorkflowAgent.setup_agent", "1", "AgentSetup(current_agent_name='writer')"),
        span("1", "FunctionAgent.run", None),
    )
    assembly = Assembly("a1")
    assert [record.name for batch in ([step], [run]) for record in assembly.add(batch)] == ["writer"]
    assert [record.agent for record in Assembly("a1").add([run, step])] == ["writer"]
