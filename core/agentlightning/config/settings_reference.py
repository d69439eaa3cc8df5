"""The reference of all settings in a config file, from its JSON schema: `agl config`, and `docs/settings.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

Schema = Mapping[str, Any]
KINDS = {
    "algorithms": "algorithm",
    "credits": "algorithm.credit",
    "advantages": "algorithm.advantage",
    "losses": "algorithm.loss",
    "corrections": "algorithm.loss.correction",
    "engines": "engine",
    "trainers": "trainer",
    "runners": "runner",
    "filters": "collection.filter",
    "samplers": "sampler",
    "adapters": "adapters",
    "trackers": "trackers",
}
"""The key that names a part, by the part's kind."""
TYPES = {"string": "text", "array": "list", "object": "table", "boolean": "true or false"}
"""What a reader calls the types of JSON."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key."""

    name: str
    value: str
    """The values that it takes."""
    default: str
    """`required`, or empty if the setting is absent by default."""
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """The settings of one table."""

    title: str
    """As in a file: `[eval]`, `engine = "torch"`, or `top level`."""
    text: str
    settings: tuple[Setting, ...]


def sections(schema: Schema) -> Iterator[Section]:
    """Yield the top level, the tables, and the parts of each kind, from `config_schema`."""
    yield Section("top level", "", tuple(_settings(schema, tables=False)))
    for name, value in schema["properties"].items():
        yield from _sections(name, value)
    for kind, key in KINDS.items():
        yield from _parts(key, schema["$defs"][kind])


def _sections(name: str, value: Schema) -> Iterator[Section]:
    """Yield the table of a key, and the tables in it; nothing for a key without a table."""
    table = _table(value)
    if table is None:
        return
    settings = tuple(_settings(table, tables=False))
    if settings:
        yield Section(f"[{name}]", value.get("description", ""), settings)
    for inner, inner_value in table["properties"].items():
        yield from _sections(f"{name}.{inner}", inner_value)


def _parts(key: str, definition: Schema) -> Iterator[Section]:
    for node in _nodes(definition):
        for branch in node.get("allOf", ()):
            name = branch["then"]["properties"]["name"]
            text = f"{_sentence(name['description'])} {branch['then'].get('description', '')}".strip()
            yield Section(f'{key} = "{name["const"]}"', text, tuple(_settings(branch["then"])))
    if not any("allOf" in node for node in _nodes(definition)):  # parts without settings
        for name in definition["anyOf"]:
            if "const" in name:
                yield Section(f'{key} = "{name["const"]}"', _sentence(name["description"]), ())


def _nodes(definition: Schema) -> Iterator[Schema]:
    """Yield a definition and its branches."""
    yield definition
    if "then" in definition:
        yield from _nodes(definition["then"])


def _settings(table: Schema, *, tables: bool = True) -> Iterator[Setting]:
    for name, value in table["properties"].items():
        if (name == "name" and "const" in value) or (not tables and _is_table(value)):
            continue
        default = "required" if name in table["required"] else shown_value(value["default"]) if "default" in value else ""
        yield Setting(name, _value(value), default, _sentence(value.get("description", "")))


def _table(value: Schema) -> Schema | None:
    """Return the table that a key may hold; None if it holds something else."""
    tables = [choice for choice in (value, *value.get("anyOf", ())) if "properties" in choice and "required" in choice]
    return tables[0] if tables else None


def _is_table(value: Schema) -> bool:
    """Whether a key holds a table and nothing else."""
    choices = [choice for choice in value.get("anyOf", (value,)) if choice.get("const", True) is not False]
    return _table(value) is not None and len(choices) == 1


def _value(value: Schema) -> str:
    """Describe the values of a key in a few words."""
    if "else" in value and "$ref" in value["else"]:  # a part, or a list of two
        value = value["else"]
    if "$ref" in value:
        return KINDS[value["$ref"].rpartition("/")[2]].rpartition(".")[2]
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_value(choice) for choice in value["anyOf"] if choice.get("const", True) is not False))
    if "enum" in value:
        return " or ".join(shown_value(choice) for choice in value["enum"])
    if "const" in value:
        return shown_value(value["const"])
    kind = str(value.get("type", "value"))
    return TYPES.get(kind, kind) + _limits(value)


def _limits(value: Schema) -> str:
    """Return the limits of a number, as far as they say more than its type."""
    limits = [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")]
    return "".join(f" {sign} {value[name]:g}" for name, sign in limits if name in value and abs(value[name]) < 2**31 - 1)


def shown_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, list):
        return f"[{', '.join(shown_value(item) for item in cast('list[Any]', value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


HEAD = """# Settings

Every key of a config file for `agl train`, with the values it takes, its default, and its meaning. `agl config` prints this page, with the
settings of your own plugins. `agl config trainer` prints a part of it. `agl config --markdown > docs/settings.md` writes this file.

In Python, pass the same names to `agl.train`, with tables as mappings. A part is a name, or a table with the name and settings:
`advantage = "grpo"` or `advantage = { name = "grpo", std = false }`. `false` turns off a setting that has no value by default.
"""


def markdown(schema: Schema) -> str:
    """Return the page `docs/settings.md`."""
    lines = [HEAD]
    for section in sections(schema):
        title = section.title if section.title == "top level" else f"`{section.title}`"
        lines += [f"## {title[0].upper()}{title[1:]}", "", *([section.text, ""] if section.text else [])]
        if section.settings:
            lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
            lines += ["| " + " | ".join(_cell(cell) for cell in _cells(setting)) + " |" for setting in section.settings] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(setting: Setting) -> tuple[str, str, str, str]:
    default = f"`{setting.default}`" if setting.default not in ("", "required") else setting.default
    return f"`{setting.name}`", setting.value, default, setting.text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith((".", ".)")) else ".") if text else ""
