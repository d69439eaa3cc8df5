"""The shape of a JSON schema, as everything behind the check may rely on it. Unknown keywords pass, and null counts as absent."""

from __future__ import annotations

import json
from typing import Any, cast

from agentlightning.gateway.api.schema import Refused

BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords with a schema for each name."""
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
"""Keywords with a list of schemas."""
SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
"""Keywords with a schema. `items` was once a list."""
TEXTS = ("title", "description")


def check_schema(schema: Any, where: str) -> None:
    """Raises `Refused` that names the part of a schema with the wrong type. True and false are schemas, for any value and for none."""
    if isinstance(schema, bool):
        return
    _expect(isinstance(schema, dict), schema, where, "an object, true or false")
    for keyword, value in schema.items():
        at = f"{where}.{keyword}"
        if value is None:
            continue
        if keyword in BY_NAME:
            _expect(isinstance(value, dict), value, at, "an object with a schema for each name")
            for name, inner in value.items():
                check_schema(inner, f"{at}.{name}")
        elif keyword in LISTS or (keyword == "items" and isinstance(value, list)):
            _expect(isinstance(value, list), value, at, "a list of schemas")
            for i, inner in enumerate(cast("list[Any]", value)):
                check_schema(inner, f"{at}[{i}]")
        elif keyword in SCHEMAS:
            check_schema(value, at)
        elif keyword == "type":
            _expect(isinstance(value, str) or _is_texts(value), value, at, "a text or a list of texts")
        elif keyword == "required":
            _expect(isinstance(value, bool) or _is_texts(value), value, at, "a list of texts")
        elif keyword == "enum":
            _expect(isinstance(value, list), value, at, "a list")
        elif keyword in TEXTS:
            _expect(isinstance(value, str), value, at, "a text")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)  # pyright: ignore[reportUnknownVariableType]


def _expect(holds: bool, value: Any, where: str, expected: str) -> None:
    if not holds:
        text = json.dumps(value)
        raise Refused(f"{where} is {text[:80]}. A JSON schema has {expected} here.", param=where)
