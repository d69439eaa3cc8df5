"""Loads the tokenizer of a model and chooses its renderer."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from agentlightning.contracts.engine import EngineInfo
from agentlightning.contracts.rendering import RenderingSettings, saved_rendering
from agentlightning.errors import ConfigError, GatewayError, MissingExtra
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.learned import unlearned
from agentlightning.gateway.rendering.library_renderer import LibraryRenderer
from agentlightning.gateway.rendering.marked import THOUGHT, TOOLS, USER, asks, replies, result
from agentlightning.gateway.rendering.renderer import Conversation, Renderer, Rendering
from agentlightning.gateway.rendering.template import CHATML, ChatTemplate
from agentlightning.gateway.rendering.template_renderer import TemplateRenderer
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.gateway.rendering.tool_format import CallFormat
from agentlightning.registry.registry import Registry, registry, unknown

log = logging.getLogger("agentlightning.gateway")
OWN = ("auto", "template", "text", "chatml")
UNLEARNED_NOTE = (
    "The model has not learned {mark}, with which its chat template begins a tool call: the embedding is that of unused tokens. So the "
    "gateway describes tools in the system message, and the model calls one with a line CALL tool(argument). Set renderer = 'template' to "
    "use the marks of the template."
)


def load_rendering(info: EngineInfo, settings: RenderingSettings | None = None, plugins: Registry | None = None) -> Rendering:
    """Load the tokenizer of a model and choose its renderer (blocking). Raises `ConfigError`, or `GatewayError` for files that do not
    load."""
    settings = settings or saved_rendering(Path(info.path))
    tokenizer, digest = load_tokenizer(info.model, info.path)
    tokens = Tokens(tokenizer)
    renderer = choose(tokens, settings, end_ids(info.path), plugins or registry(), Path(info.path))
    for note in renderer.notes:
        log.warning("Model %s: %s", info.model, note)
    return Rendering(tokens, renderer, digest)


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


def end_ids(path: str) -> tuple[int, ...]:
    """The ids that end a reply, from `generation_config.json`. Empty: the model has none."""
    from transformers import GenerationConfig

    folder = Path(path)
    if folder.is_dir():
        file = folder / "generation_config.json"
        try:
            ends: Any = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        except (ValueError, AttributeError) as error:
            raise GatewayError(f"{file} is not a JSON object: {error}. Correct it, or remove it.") from error
    else:
        try:
            ends = cast(Any, GenerationConfig).from_pretrained(path).eos_token_id
        except OSError:
            ends = None
    return tuple(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))  # pyright: ignore[reportUnknownVariableType]


def choose(tokens: Tokens, settings: RenderingSettings, eos: Sequence[int], plugins: Registry, folder: Path | None = None) -> Renderer:
    """The renderer of a tokenizer. `folder`: with the weights of its model.

    `auto` derives everything from the template. It takes a family of the `renderers` library where the template alone does not say how the
    model writes tool calls, and a family renders the same prompts as the template. It takes `text` where the model has not learned the
    mark of a tool call.
    """
    name = settings.renderer
    if name == "chatml":
        return TemplateRenderer(tokens, replace(settings, chat_template=CHATML), eos, name=name)
    if ":" in name:
        return _custom(name, tokens, settings)
    if name in plugins.names("renderers"):
        return plugins.load("renderers", name)(tokens, settings)
    if name not in OWN:
        return LibraryRenderer(name, _family(name, tokens, plugins), tokens, eos)
    try:
        renderer = TemplateRenderer(tokens, settings, eos, name="text" if name == "text" else "template")
    except Refused as error:
        raise ConfigError(str(error)) from error
    if name == "auto" and (renderer.traits.several_messages or renderer.traits.calls is None):
        for entry in plugins.entries("renderers"):
            if not entry.missing and hasattr(entry.load(), "fits") and entry.load().fits(tokens.tokenizer):
                return entry.load()(tokens, settings)
        family = _fitting(renderer.template, tokens, eos) if renderer.traits.shows_tools else None
        return renderer if family is None else family
    mark = _unlearned_mark(renderer, tokens, folder) if name == "auto" and folder is not None else None
    if mark is None:
        return renderer
    renderer = TemplateRenderer(tokens, settings, eos, name="text")
    renderer.tool_note = UNLEARNED_NOTE.format(mark=mark)
    return renderer


def _unlearned_mark(renderer: TemplateRenderer, tokens: Tokens, folder: Path) -> str | None:
    """A token in the mark before a tool call that the model has not learned."""
    before = renderer.format.before if isinstance(renderer.format, CallFormat) else ""
    ids = {id: text for text, id in tokens.by_text.items() if text in before}
    return min((ids[id] for id in unlearned(folder, ids)), default=None)


def _custom(name: str, tokens: Tokens, settings: RenderingSettings) -> Renderer:
    module, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"renderer is {name!r}, and importing it fails: {error}. Use 'auto', or 'module:function'.") from error
    renderer = make(tokens, settings)
    if not isinstance(renderer, Renderer):
        raise ConfigError(f"renderer {name!r} returns a {type(renderer).__name__}. Return a subclass of agentlightning's Renderer.")
    return renderer


def _family(name: str, tokens: Tokens, plugins: Registry) -> Any:
    library = cast(Any, importlib.import_module("renderers.base"))
    configs = cast(Any, importlib.import_module("renderers.configs"))
    try:
        config = configs.config_from_name(name)
    except ValueError as error:
        library._populate_registry()
        raise ConfigError(unknown("renderer", name, sorted({*OWN, *plugins.names("renderers"), *library.RENDERER_REGISTRY}))) from error
    return library.create_renderer(tokens.tokenizer, config)


def _fitting(template: ChatTemplate, tokens: Tokens, eos: Sequence[int]) -> Renderer | None:
    """The family that writes every probe exactly as the template does."""
    library = cast(Any, importlib.import_module("renderers.base"))
    library._populate_registry()
    probes = [
        Conversation([USER]),
        Conversation([{"role": "system", "content": "aglsystem"}, USER, replies(), USER]),
        Conversation([USER], TOOLS),
        Conversation([USER, asks(thought=THOUGHT), result()], TOOLS),
    ]
    for name in sorted(library.RENDERER_REGISTRY):
        if name in ("auto", "default"):
            continue
        try:
            family = LibraryRenderer(name, _family(name, tokens, registry()), tokens, eos)
            if all(family.prompt(item) == tokens.encode(template.text(item.messages, item.tools)) for item in probes):
                return family
        except Exception as error:  # a family for another tokenizer raises whatever it meets first
            log.debug("The renderer %s does not fit: %s", name, error)
    return None
