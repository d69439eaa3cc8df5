"""One rollout as a tree: agents over tools and model calls, with text, tokens, log-probabilities, rewards and advantages."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from agentlightning.cli.conversation import clip, sent_text
from agentlightning.cli.view import STYLES, print_sums, short
from agentlightning.contracts.store import AttemptRecords
from agentlightning.records.shown import Shown
from agentlightning.records.source import RecordsSource, load_tokenizer
from agentlightning.rl.trajectory.joins import Joins, join
from agentlightning.stores.messages import RecordedMessages
from agentlightning.training.attempt_tree import AttemptTree, Node
from agentlightning.training.message_text import message_text
from agentlightning.training.recorded import finished_step
from agentlightning.types import Call, Completion, Reward, Span

Decode = Callable[[int], str]


def print_rollout(shown: Shown, source: RecordsSource, console: Console, *, tokens: bool) -> None:
    """Print everything about one rollout."""
    rollout = shown.state.rollout
    facts = Table.grid(padding=(0, 2))
    number, reward = finished_step(rollout), shown.trajectory.reward if shown.trajectory else None
    for name, value in (
        ("task", f"{rollout.task.id}  {_json(rollout.task.input)}"),
        ("mode", rollout.mode + ("" if number is None else f", step {number}") + f", group {rollout.group}, index {rollout.index}"),
        ("reward", "not scored" if reward is None else f"{reward:g}"),
        ("policy", f"{rollout.policy}, sampling {_sampling(shown)}"),
    ):
        facts.add_row(Text(name, style="bold"), Text(value))
    status = Text(shown.state.status, style=STYLES.get(shown.state.status, ""))
    console.print(Panel(facts, title=Text.assemble("rollout ", (rollout.id, "cyan"), " ", status), title_align="left"))
    decode = load_decoder(source)
    if decode is None and tokens:
        console.print("showing token ids without text: this run's tokenizer is not here, or `tokenizers` is not installed", style="dim")
    for records in shown.attempts:
        console.print(AttemptView(shown, records, decode, tokens).tree())
    notes = [*source.notes, *([shown.problem] if shown.problem else []), *(shown.trajectory.diagnostics if shown.trajectory else ())]
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    print_sums([shown], console)


class AttemptView:
    """Builds the tree of one attempt."""

    def __init__(self, shown: Shown, records: AttemptRecords, decode: Decode | None, tokens: bool) -> None:
        self._shown, self._records, self._decode, self._tokens = shown, records, decode, tokens
        self._joins: Joins = join(records.calls, records.spans)
        self._messages = RecordedMessages(records)
        self._completions: dict[str, list[Completion]] = defaultdict(list)
        for completion in records.completions:
            self._completions[completion.call_id].append(completion)
        self._rewards: dict[str | None, list[Reward]] = defaultdict(list)
        trajectory = shown.trajectory
        counts = trajectory is not None and trajectory.attempt_id == records.attempt.id
        self._transitions = (
            {transition.completion_id: transition for transition in trajectory.transitions} if trajectory is not None and counts else {}
        )
        of_steps = (reward for transition in self._transitions.values() for reward in transition.rewards)  # not in the store
        for reward in {reward.id: reward for reward in (*records.rewards, *of_steps)}.values():
            self._rewards[reward.span_id or reward.call_id].append(reward)

    def tree(self) -> Tree:
        attempt = self._records.attempt
        took = "" if attempt.finished is None else f", {attempt.finished - attempt.started:.1f} s"
        status = attempt.status.replace("_", " "), STYLES.get(attempt.status, "")
        head = Text.assemble(f"attempt {attempt.number} ", status, f" on {attempt.worker}{took}, id {attempt.id}")
        if attempt.error:
            head.append(f"\n{attempt.error}", style="red")
        self._append_rewards(head, None)
        root = Tree(head, guide_style="dim")
        structure = AttemptTree.of(self._records, self._joins)
        for node in structure.roots:
            self._add(root, node)
        branch = root
        if structure.calls and self._records.spans:
            branch = root.add(Text("model calls without a span of the framework", style="yellow"))
        for call in structure.calls:
            branch.add(self._call(call, None))
        if not self._records.calls:
            root.add(Text("no model call reached the gateway", style="yellow"))
        return root

    def _add(self, parent: Tree, node: Node) -> None:
        branch = parent.add(self._span(node.span) if node.call is None else self._call(node.call, node.span))
        for child in node.children:
            self._add(branch, child)

    def _span(self, span: Span) -> Text:
        style = {"agent": "bold magenta", "tool": "bold blue", "note": "italic", "llm": "bold yellow"}[span.kind]
        head = Text.assemble((span.kind, style), " ", span.name)
        if span.kind == "llm":
            head.append("  its call did not reach the gateway", style="yellow")
        if span.ended is not None and span.kind != "note":
            head.append(f"  {span.ended - span.started:.2f} s", style="dim")
        if span.attributes:
            head.append(f"\n{_json(span.attributes)}", style="dim")
        return self._append_rewards(head, span.id)

    def _call(self, call: Call, span: Span | None) -> RenderableType:
        head = Text.assemble(("llm", "bold green"), f" call {short(call.id)} ", (call.status, "" if call.status == "completed" else "red"))
        agent = span.agent if span is not None else next((t.agent for t in self._transitions.values() if t.call_id == call.id), None)
        if agent:
            head.append(f"  by {agent}")
        if call.ended > call.started:
            head.append(f"  {call.ended - call.started:.2f} s", style="dim")
        if call.context:
            head.append(f"  prompt {call.context}", style="dim")
        if call.detail:
            head.append(f"\n{call.detail}", style="red")
        if call.id in self._joins.alias:
            head.append(f"\nretried as call {short(self._joins.alias[call.id])}", style="yellow")
        for key in {call.id, span.id if span is not None else call.id}:
            self._append_rewards(head, key)
        parts: list[RenderableType] = [head, *sent_text(call, self._messages)]
        for completion in self._completions[call.id]:
            parts += self._completion(completion)
        return Group(*parts)

    def _completion(self, completion: Completion) -> list[RenderableType]:
        logprobs = completion.logprobs
        size = f"{len(completion.prompt_ids)} + {len(completion.response_ids)} tokens, {completion.finish_reason}"
        versions = sorted(set(completion.versions.tolist()))
        line = Text(f"{size}, policy {completion.policy} v{'/v'.join(map(str, versions)) or '-'}")
        if completion.demonstrated:
            line = Text.assemble(f"{size}, ", ("demonstrated, not sampled", "cyan"))
        elif completion.missing is not None and not len(completion.response_ids):
            line = Text(f"tokens unknown, {completion.finish_reason}, made by an upstream")
        if logprobs is not None and len(logprobs):
            line.append(f", mean logprob {float(logprobs.mean()):.3f}")
        parts: list[RenderableType] = [line, self._learned_text(completion)]
        if completion.problem is not None:
            parts.append(Text(f"broken tool call: {completion.problem}", style="red"))
        exact = self._decode is not None and logprobs is not None
        if self._decode is not None and logprobs is not None:
            parts.append(coloured([self._decode(int(token)) for token in completion.response_ids], logprobs.tolist()))
        parts.append(Text(clip(message_text(completion.message, content=not exact))))
        if self._tokens:
            parts.append(self._token_table(completion))
        return [part for part in parts if not (isinstance(part, Text) and not part.plain)]

    def _learned_text(self, completion: Completion) -> Text:
        """Return the reply's return and advantage, or the reason for its exclusion."""
        transition = self._transitions.get(completion.id)
        if transition is None:
            return Text("not part of the trajectory", style="dim")
        learned = self._shown.learned
        texts: list[str] = []
        if learned is not None and transition.index < len(learned.advantages):
            credit, advantage = learned.returns[transition.index], learned.advantages[transition.index]
            if credit is not None:
                texts.append(f"return {credit:+.3f}")
            if advantage is not None:
                texts.append(f"advantage {advantage:+.3f}")
        if not transition.trained:
            texts.append(f"not trained: {transition.reason}")
        return Text(", ".join(texts), style="bold" if transition.trained else "yellow")

    def _token_table(self, completion: Completion) -> Table:
        numbers = (Column(heading, justify="right") for heading in ("#", "id", "logprob", "version"))
        table = Table(*numbers, "token", box=None, pad_edge=False, header_style="bold dim")
        for place, token in enumerate(completion.response_ids.tolist()):
            logprob = completion.logprobs[place] if completion.logprobs is not None else None
            table.add_row(
                str(place),
                str(token),
                "missing" if logprob is None else Text(f"{float(logprob):.4f}", style=_colour(float(logprob))),
                str(int(completion.versions[place])),
                Text(repr(self._decode(token)) if self._decode else ""),
            )
        return table

    def _append_rewards(self, text: Text, key: str | None) -> Text:
        for reward in self._rewards.get(key, ()):
            text.append(f"\nreward {reward.name} = {reward.value:g}", style="bold yellow")
            text.append(f" from {reward.source}", style="dim")
        return text


def coloured(tokens: Sequence[str], logprobs: Sequence[float]) -> Text:
    """Sampled text; the surer the policy was of a token, the greener."""
    text = Text()
    for token, logprob in zip(tokens, logprobs, strict=True):
        text.append(token.replace("\n", "⏎\n"), style=_colour(logprob))
    return text


def _colour(logprob: float) -> str:
    if not math.isfinite(logprob):
        return "bold red"
    chance = math.exp(min(0.0, logprob))
    return "green" if chance > 0.9 else "bright_green" if chance > 0.5 else "yellow" if chance > 0.1 else "red"


def load_decoder(source: RecordsSource) -> Decode | None:
    """A token id to text with the tokenizer of the run's model; None where it is not on this machine."""
    tokenizer = load_tokenizer(source)
    return None if tokenizer is None else lambda token: str(tokenizer.decode([token], skip_special_tokens=False))


def _sampling(shown: Shown) -> str:
    sampling = shown.state.rollout.sampling
    if sampling is None:
        return "as the agent asks"
    most = f"at most {sampling.max_tokens}" if sampling.max_tokens else "any number of"
    return f"at temperature {sampling.temperature:g}, {most} tokens"


def _json(value: Any) -> str:
    return clip(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
