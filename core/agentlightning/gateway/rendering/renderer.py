"""Messages to token ids and back: a tokenizer with the renderer that fits its model, loaded at the first request."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agentlightning.contracts.engine import EngineInfo
from agentlightning.errors import ConfigError, GatewayError, MissingExtra
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.tool_text import End, ToolCall, json_text
from agentlightning.registry.registry import Registry, registry, unknown
from agentlightning.types import Completion, IntArray, ints


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of a reply."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Rendering:
    """One tokenizer and its renderer."""

    name: str
    tokenizer: Any
    renderer: Any
    hash: str
    """Of the tokenizer."""
    stop_ids: tuple[int, ...]

    @property
    def calls_tools(self) -> bool:
        return bool(getattr(self.renderer, "supports_tools", True))

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> IntArray:
        """(prompt,) the conversation, ready for a reply."""
        return ints(self.renderer.render_ids(list(messages), tools=list(tools) or None, add_generation_prompt=True))

    def bridge(self, earlier: Completion, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> IntArray | None:
        """(prompt,) the sampled tokens, then the new messages. None: the renderer cannot bridge them."""
        if (earlier.renderer, earlier.tokenizer) != (self.name, self.hash):
            return None
        before, sampled = earlier.prompt_ids.tolist(), earlier.response_ids.tolist()
        rendered = self.renderer.bridge_to_next_turn(before, sampled, list(messages), tools=list(tools) or None)
        if rendered is None or rendered.token_ids[: len(before) + len(sampled)] != before + sampled:
            return None
        return ints(rendered.token_ids)

    def prefill(self, tool: str | None) -> str:
        """The text that makes a reply a call of this tool; None: of any tool."""
        if not hasattr(self.renderer, "prefill"):
            raise Refused(f"The renderer {self.name!r} cannot enforce tool_choice. Use 'auto'.", param="tool_choice")
        return self.renderer.prefill(tool)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # without checks that cost more than the decoding of one chunk
            return backend.decode(list(ids), skip_special_tokens=False)
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def parse(
        self, ids: Sequence[int], text: str, prompt: IntArray, tools: Sequence[Any], *, prefix: str = "", end: End, hidden: str | None
    ) -> Parsed:
        """Read a reply. `text` is the visible part of `ids`; `hidden` is the stop string that ended it."""
        if hasattr(self.renderer, "read_text"):
            content, calls = self.renderer.read_text(text, list(tools), prefix=prefix, end=end)
            return Parsed(content, calls)
        reply = self.renderer.parse_response(list(ids), tools=list(tools) or None, prompt_ids=prompt.tolist())
        content = reply.content.partition(hidden)[0] if hidden else reply.content
        if not tools:
            return Parsed(content, (), reply.reasoning_content)
        good = [call for call in reply.tool_calls if call.status == "ok" and call.name]
        calls = tuple(ToolCall(call.name, _json(call.arguments)) for call in good)
        return Parsed(content, calls, reply.reasoning_content)


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json_text(arguments or {})


def load_rendering(info: EngineInfo, base: str, name: str, plugins: Registry | None = None) -> Rendering:
    """Load the tokenizer of a model and choose its renderer (blocking). `name`: `auto`, a registered renderer, or one of the `renderers`
    library. `base`: the model before training."""
    tokenizer, digest = load_tokenizer(info.model, info.path)
    chosen, renderer = _choose(tokenizer, (info.path, info.model, base), name, plugins or registry())
    return Rendering(chosen, tokenizer, renderer, digest, tuple(renderer.get_stop_token_ids()))


def load_tokenizer(model: str, path: str) -> tuple[Any, str]:
    """The tokenizer of a model, and its hash (blocking)."""
    missing = [module for module in ("renderers", "transformers") if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(f"The gateway needs {', '.join(missing)} to render messages. Run: pip install 'agentlightning[serve]'")
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    try:
        tokenizer = auto.from_pretrained(path)
    except Exception as error:
        raise GatewayError(
            f"The tokenizer of model {model!r} does not load from {path!r}: {error}. Use a folder or hub id that "
            "AutoTokenizer.from_pretrained loads."
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: str = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return tokenizer, hashlib.sha256(content.encode()).hexdigest()[:16]


def _choose(tokenizer: Any, models: Sequence[str], name: str, plugins: Registry) -> tuple[str, Any]:
    library = cast(Any, importlib.import_module("renderers.base"))
    configs = cast(Any, importlib.import_module("renderers.configs"))
    if name in plugins.names("renderers"):
        return name, plugins.load("renderers", name)(tokenizer)
    if name == "auto":
        names = [library.MODEL_RENDERER_MAP[model] for model in models if model in library.MODEL_RENDERER_MAP]
        for entry in plugins.entries("renderers") if not names else ():
            if not entry.missing and entry.load().fits(tokenizer):
                return entry.name, entry.load()(tokenizer)
        name = names[0] if names else "default"
    try:
        config = configs.config_from_name(name)
    except ValueError as error:
        library._populate_registry()
        raise ConfigError(unknown("renderer", name, sorted({*plugins.names("renderers"), *library.RENDERER_REGISTRY}))) from error
    return name, library.create_renderer(tokenizer, config)
