"""`agl config`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from agentlightning.errors import ConfigError

if TYPE_CHECKING:
    from agentlightning.config.settings_reference import Section


def config(
    part: Annotated[
        str, typer.Argument(metavar="[PART]", help="Show only tables and parts with this in their name.", show_default=False)
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all settings as a Markdown page.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of config files.")] = False,
) -> None:
    """Show every setting of a config file, including those of installed plugins.

    **Examples**

    `agl config` shows all settings, with the values that they take and their defaults.

    `agl config trainer` shows the settings of the trainers.

    `agl config --schema > config.schema.json` lets your editor complete and check config files. Write `#:schema ./config.schema.json` as
    the first line of config.toml. Editors that use taplo, such as VS Code with the Even Better TOML extension, read this line."""
    if sum((bool(part), markdown, schema)) > 1:
        raise ConfigError("PART, --markdown, and --schema exclude one another. Give one of them.")
    from agentlightning.config import settings_reference
    from agentlightning.config.json_schema import config_schema

    every_key = config_schema()
    if schema:
        typer.echo(json.dumps(every_key, indent=2, ensure_ascii=False))
    elif markdown:
        typer.echo(settings_reference.markdown(every_key), nl=False)
    else:
        _show([section for section in settings_reference.sections(every_key) if part in section.title], part)


def _show(sections: list[Section], part: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sections:
        raise ConfigError(f"No table or part of a config file has {part!r} in its name. `agl config` shows all.")
    console = Console()
    for section in sections:
        title = Text.assemble((section.title, "bold"), f"  {section.text}" if section.text else "")
        console.print(title, soft_wrap=True)
        table = Table("key", "values", "default", "meaning", box=None, header_style="dim")
        for setting in section.settings:
            table.add_row(*(Text(cell) for cell in (setting.name, setting.value, setting.default, setting.text)))
        console.print(*([table] if section.settings else []), "")
