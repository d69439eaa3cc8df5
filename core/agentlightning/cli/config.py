"""`agl config`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from agentlightning.errors import ConfigError


def config(schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of config files.")] = False) -> None:
    """Print the JSON schema of config files, so that your editor completes and checks them.

    The schema includes the settings of every installed plugin.

    **Example**

    `agl config --schema > config.schema.json`, then write `#:schema ./config.schema.json` as the first line of config.toml. Editors that
    use taplo, such as VS Code with the Even Better TOML extension, read this line.
    """
    if not schema:
        raise ConfigError("`agl config` has nothing to print. Add --schema.")
    from agentlightning.config.json_schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))
