"""Which model call earned the reward of a span. Four rules, by the kind of span:

1. An `llm` span: its own call.
2. A tool, or anything within one: the completion that asked for that tool call, by `tool_call_id`. If no completion asked for it, rule 4
   applies to the tool.
3. An agent: the last call made within it, because nobody asked for the agent itself.
4. Anything else: the nearest earlier call of the agent around it. That is the nearest enclosing agent span with an earlier call within it,
   or else the agent of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentlightning.rl.trajectory.joins import TOOL_CALL_ID, Joins, Tree, asked_tools
from agentlightning.types import Call, Completion, Span


class RewardTargets:
    """The rules, on the records of one attempt."""

    def __init__(self, calls: Sequence[Call], completions: Mapping[str, Sequence[Completion]], tree: Tree, joins: Joins) -> None:
        """`calls` in order of arrival, `completions` by call in order of choice."""
        self._tree = tree
        self._call_of = {span.id: call_id for call_id, spans in joins.spans.items() for span in spans}
        self._order = [call.id for call in calls]
        self._asking = {
            tool_id: completion.id for call in calls for completion in completions[call.id] for tool_id in asked_tools(completion.message)
        }
        joined = (span for span in tree.spans.values() if span.id in self._call_of)
        self._joined = sorted(joined, key=lambda span: span.started)

    def target(self, span: Span) -> str | None:
        """The id of the call, or of the one completion, that earned a reward of this span; None: no rule gives one."""
        if span.kind == "llm":
            return self._call_of.get(span.id)
        tool = next((level for level in (span, *self._tree.above(span)) if level.kind == "tool"), None)
        if tool is not None:
            return self._asking_completion(tool) or self._earlier_call(tool)
        return self._last_call_within(span) if span.kind == "agent" else self._earlier_call(span)

    def _asking_completion(self, tool: Span) -> str | None:
        tool_id = tool.attributes.get(TOOL_CALL_ID)
        return self._asking.get(tool_id) if isinstance(tool_id, str) else None

    def _last_call_within(self, agent: Span) -> str | None:
        within = {self._call_of[span.id] for span in self._within(self._joined, agent)}
        return next((call_id for call_id in reversed(self._order) if call_id in within), None)

    def _earlier_call(self, span: Span) -> str | None:
        earlier = [call for call in self._joined if call.started <= span.started]
        for agent in (level for level in self._tree.above(span) if level.kind == "agent"):
            if within := self._within(earlier, agent):
                return self._call_of[within[-1].id]
        name = self._tree.agent(span)
        same = [call for call in earlier if self._tree.agent(call) == name]
        return self._call_of[same[-1].id] if same else None

    def _within(self, spans: Iterable[Span], ancestor: Span) -> list[Span]:
        return [span for span in spans if any(level.id == ancestor.id for level in self._tree.above(span))]
