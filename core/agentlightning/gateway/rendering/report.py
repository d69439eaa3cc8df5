"""A model's renderer, tried out: a tool call, the ends of a reply, and the turns that continue the sampled tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from agentlightning.contracts.rendering import HistoryMode, RenderingSettings
from agentlightning.errors import LightningError
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.frames import empty_reasoning
from agentlightning.gateway.rendering.library_renderer import LibraryRenderer
from agentlightning.gateway.rendering.load import choose, end_ids, load_tokenizer
from agentlightning.gateway.rendering.renderer import Conversation, Renderer, Rendering
from agentlightning.gateway.rendering.template_renderer import TemplateRenderer
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.gateway.rendering.tool_format import CallFormat
from agentlightning.registry.registry import registry
from agentlightning.types import Completion, Sampling, ints

THOUGHT = "The user wants the weather."
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Returns the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL: dict[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 2}'},
}
QUESTION = Conversation([{"role": "user", "content": "What is the weather in Paris?"}], [WEATHER])
KINDS = {
    "object": "a JSON object with the name and the arguments",
    "header": "the name, then a JSON object",
    "tagged": "the name, then marked keys and values",
    "python": "a Python call",
}
MODES: tuple[HistoryMode, HistoryMode] = ("template", "exact")
Turn = tuple[str, str]
"""(where it stands, `bridged` or the reason why it is rendered afresh)"""


@dataclass(frozen=True, slots=True)
class RenderingReport:
    """The renderer of a model, tried out."""

    renderer: str
    why: str
    tools: str
    example: str
    """A call, as the model writes it."""
    reasoning: str
    """The marks around reasoning; empty without any."""
    stops: tuple[str, ...]
    notes: tuple[str, ...]
    turns: dict[HistoryMode, tuple[Turn, ...]]
    history: HistoryMode
    """The mode of these settings."""

    @property
    def short(self) -> tuple[str, str]:
        """Two lines."""
        ends = ", ".join(self.stops) or "nothing"
        fresh = [f"{place}: {cause}" for place, cause in self.turns[self.history] if cause != "bridged"]
        turns = "; ".join(fresh) if fresh else "every turn continues the sampled tokens"
        return f"renderer {self.renderer}, tools as {self.tools}, replies end with {ends}", turns


def report_rendering(model: str, path: str, settings: RenderingSettings) -> RenderingReport:
    """Try out the renderer of a model (blocking). Raises `ConfigError` or `GatewayError` for a model that cannot render."""
    tokenizer, digest = load_tokenizer(model, path)
    with _silent():
        return _report(Tokens(tokenizer), digest, path, settings)


def _report(tokens: Tokens, digest: str, path: str, settings: RenderingSettings) -> RenderingReport:
    def chosen(settings: RenderingSettings) -> Renderer:
        return choose(tokens, settings, ends, registry(), Path(path))

    ends = end_ids(path)
    renderer = chosen(settings)
    template, exact = (Rendering(tokens, chosen(replace(settings, history=history)), digest) for history in MODES)
    tools, example = _tools(renderer)
    frame = _reasoning(renderer)
    stops = [repr(tokens.decode([id])) for id in renderer.stop_ids] + [f"the text {stop!r}" for stop in renderer.stop_strings]
    return RenderingReport(
        renderer=renderer.name,
        why=_why(renderer, settings),
        tools=tools,
        example=example,
        reasoning="" if frame is None else f"{frame[0].strip()} ... {frame[1].strip()}",
        stops=tuple(stops),
        notes=(*renderer.notes, *([renderer.tool_note] if isinstance(renderer, TemplateRenderer) and renderer.tool_note else [])),
        turns={"template": tuple(_turns(template)), "exact": tuple(_turns(exact))},
        history=settings.history,
    )


@contextmanager
def _silent() -> Generator[None]:
    """Hide the gateway's warnings, because the report has them."""
    log = logging.getLogger("agentlightning.gateway")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _why(renderer: Renderer, settings: RenderingSettings) -> str:
    own = " set by chat_template" if settings.chat_template is not None else " of the model"
    if settings.renderer != "auto":
        return f"renderer = {settings.renderer!r} is set"
    if isinstance(renderer, TemplateRenderer):
        if renderer.name == "text":
            return f"the model has not learned the marks of tool calls in the chat template{own}"
        return f"derived from the chat template{own}"
    if isinstance(renderer, LibraryRenderer):
        return "the template alone does not show how the model writes calls, and this family writes every probe as the template does"
    return "the template alone does not show how the model writes calls, and this renderer fits the tokenizer"


def _tools(renderer: Renderer) -> tuple[str, str]:
    """(the format of calls, an example)"""
    asks = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    try:
        written = renderer.written(QUESTION, asks)
    except Refused as error:
        return f"none: {error}", ""
    if not isinstance(renderer, TemplateRenderer):
        return f"the format of {renderer.name}", (written or "").strip()
    if isinstance(renderer.format, CallFormat):
        return KINDS[renderer.format.kind], (written or renderer.format.example()).strip()
    return "a line of text", (written or renderer.format.example()).strip()


def _reasoning(renderer: Renderer) -> tuple[str, str] | None:
    return renderer.traits.frames.reasoning if isinstance(renderer, TemplateRenderer) else None


def _turns(rendering: Rendering) -> list[Turn]:
    """Render a short conversation with tools and reasoning turn by turn, as if the model had sampled the replies."""
    reasons = _reasoning(rendering.renderer) is not None
    thought = {"reasoning_content": THOUGHT} if reasons else {}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a guide."},
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], **thought},
        {"role": "tool", "tool_call_id": CALL["id"], "name": "get_weather", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny.", **thought},
        {"role": "user", "content": "And in Rome?"},
    ]
    turns: list[Turn] = []
    places = {3: "after a tool's result", 5: "after a new question"}
    earlier: Completion | None = None
    for end in (1, 3, 5):
        conversation = Conversation(messages[: end + 1], [WEATHER])
        try:
            prompt, cause = rendering.renderer.prompt(conversation), "first"
            if end > 1:
                bridged, cause = (None, "not tried") if earlier is None else rendering.bridge(earlier, conversation, end)
                prompt = prompt if bridged is None else bridged.tolist()
                turns.append((places[end], cause))
            earlier = _sampled(rendering, prompt, conversation, messages[end + 1]) if end < 5 else None
        except (LightningError, Refused) as error:
            turns.append((places.get(end, "the first turn"), f"refused: {str(error)[:160]}"))
            earlier = None
    return turns


def _sampled(rendering: Rendering, prompt: list[int], conversation: Conversation, reply: dict[str, Any]) -> Completion | None:
    """A reply as if it were sampled; None: the renderer cannot write it."""
    plain = {key: value for key, value in reply.items() if key != "reasoning_content"}
    text = rendering.renderer.written(conversation, plain)
    if text is None:  # the template writes the reply in another frame than its prompt
        text = rendering.renderer.written(QUESTION, plain) if plain.get("tool_calls") else str(plain["content"])
    if text is None:
        return None
    frame = _reasoning(rendering.renderer)
    if frame is not None and THOUGHT in str(reply.get("reasoning_content")):
        opened = text.startswith(frame[1])
        rest = re.sub("^" + empty_reasoning(frame), "", text)
        text = f"{THOUGHT}{text}" if opened else f"{frame[0].lstrip()}{THOUGHT}{frame[1]}{rest}"
    response = [*rendering.encode(text), *rendering.stop_ids[:1]]
    blank = ints([0] * len(response))
    return Completion(
        call_id="", attempt_id="", prompt_ids=ints(prompt), response_ids=ints(response), logprobs=None, versions=blank, sampling=Sampling(),
        finish_reason="stop", renderer=rendering.name, tokenizer=rendering.hash, message=cast(Any, reply),
    )  # fmt: skip
