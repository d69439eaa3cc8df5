"""Options of a command as dataclasses: each field is an option, and the command receives the whole group."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a Typer command that has the fields of each parameter that is a dataclass in place of this parameter.

    A field is annotated and has a default, like a parameter of a Typer command. Two groups must not share a name."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    types = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        group = types[parameter.name]
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            groups[parameter.name] = group
            parameters += _options(group)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=group))

    def command(**arguments: Any) -> None:
        for name, group in groups.items():
            names = {field.name for field in dataclasses.fields(group)} & arguments.keys()
            arguments[name] = group(**{option: arguments.pop(option) for option in names})
        function(**arguments)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _options(group: type[Any]) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
        for field in dataclasses.fields(group)
    ]
