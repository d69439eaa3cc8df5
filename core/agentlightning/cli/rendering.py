"""The options of `agl rollout`, `agl serve` and `agl bench` for the renderer, with the names of the config's keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from agentlightning.contracts.rendering import HistoryMode
from agentlightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RenderingOptions:
    """How messages become tokens. What is None stays as the model, the run or the config file has it."""

    renderer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Turn messages into tokens: `auto`, `template`, `text`, `chatml`, or `module:function`."),
    ] = None
    chat_template: Annotated[str | None, typer.Option(metavar="FILE", help="Use this Jinja file instead of the model's chat template.")] = (
        None
    )
    template_arguments: Annotated[
        str | None, typer.Option(metavar="JSON", help="Variables of the chat template, such as '{\"enable_thinking\": false}'.")
    ] = None
    history: Annotated[
        HistoryMode | None,
        typer.Option(help="Earlier turns: as the chat template writes them (`template`), or as sampled (`exact`)."),
    ] = None
    special_tokens: Annotated[
        bool | None,
        typer.Option("--special-tokens/--no-special-tokens", help="Let text such as <|im_end|> in messages become special tokens."),
    ] = None

    def keys(self) -> dict[str, Any]:
        """Return the config's keys that these options set. Raises `ConfigError` for arguments that are not a JSON object."""
        keys = {
            "renderer": self.renderer,
            "chat_template": None if self.chat_template is None else str(Path(self.chat_template).expanduser().absolute()),
            "template_arguments": None if self.template_arguments is None else _arguments(self.template_arguments),
            "history": self.history,
            "special_tokens": self.special_tokens,
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
