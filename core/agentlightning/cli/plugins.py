"""`agl plugins`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from agentlightning.registry.registry import KINDS, Registry, registry


def plugins() -> None:
    """List installed plugins and their parts, and show how to install missing libraries.

    A plugin is a package with an entry point in the `agentlightning` group. To write one, see CONTRIBUTING.md in the source repository.

    **Example**

    `agl plugins`
    """
    report(registry(), Console())


def report(plugins: Registry, console: Console) -> None:
    """Print the table, missing libraries, and broken plugins."""
    headings = ("kind", "name", "description", "plugin", "ready")
    columns = (Column(heading, no_wrap=heading in ("kind", "name", "plugin"), overflow="fold") for heading in headings)
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    commands: dict[str, list[str]] = {}
    for kind in KINDS:
        for number, entry in enumerate(plugins.entries(kind)):
            ready = Text("yes", style="green")
            if entry.missing:
                ready = Text(f"no: {', '.join(entry.missing)}", style="yellow")
                commands.setdefault(entry.install, []).append(entry.name)
            elif entry.not_here:
                ready = Text(f"{', '.join(entry.not_here)} is not here: see `agl doctor`", style="yellow")
            table.add_row(kind if number == 0 else "", Text(entry.name, style="bold"), Text(entry.summary), entry.plugin, ready)
    console.print(table)
    for command, names in commands.items():
        console.print(Text.assemble("\n", ("missing", "yellow"), f" for {', '.join(names)}. Install with:\n  ", (command, "bold")))
    for name, why in plugins.broken.items():
        console.print(Text.assemble("\n", ("broken", "bold red"), f" plugin {name!r} is not used: {why}"), soft_wrap=True)
