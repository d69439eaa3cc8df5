"""The options of `agl rollout`, `agl serve` and `agl bench` for the renderer, with the names of the config's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from agentlightning.contracts.rendering import HistoryMode
from agentlightning.errors import ConfigError

RendererOption = Annotated[
    str | None,
    typer.Option(
        "--renderer", metavar="NAME", help="Turn messages into tokens: `auto`, `template`, `text`, `chatml`, or `module:function`."
    ),
]
ChatTemplateOption = Annotated[
    str | None, typer.Option("--chat-template", metavar="FILE", help="Use this Jinja file instead of the model's chat template.")
]
ArgumentsOption = Annotated[
    str | None,
    typer.Option("--template-arguments", metavar="JSON", help="Variables of the chat template, such as '{\"enable_thinking\": false}'."),
]
HistoryOption = Annotated[
    HistoryMode | None,
    typer.Option("--history", help="Earlier turns: as the chat template writes them (`template`), or as sampled (`exact`)."),
]
SpecialTokensOption = Annotated[
    bool | None,
    typer.Option("--special-tokens/--no-special-tokens", help="Let text such as <|im_end|> in messages become special tokens."),
]


def rendering_keys(
    renderer: str | None, chat_template: str | None, arguments: str | None, history: HistoryMode | None, special_tokens: bool | None
) -> dict[str, Any]:
    """Return the config's keys that these options set. Raises `ConfigError` for arguments that are not a JSON object."""
    keys = {
        "renderer": renderer,
        "chat_template": None if chat_template is None else str(Path(chat_template).expanduser().absolute()),
        "template_arguments": None if arguments is None else _arguments(arguments),
        "history": history,
        "special_tokens": special_tokens,
    }
    return {name: value for name, value in keys.items() if value is not None}


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments: object = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigError(f"--template-arguments is {text!r:.80}. Use a JSON object, such as '{{\"enable_thinking\": false}}'.")
    return cast("dict[str, Any]", arguments)
