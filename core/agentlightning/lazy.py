"""Public names of a package that load at their first use, so that importing the package costs little."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentlightning.errors import MissingExtra


def lazy_exports(
    package: str, homes: Mapping[str, Sequence[str]], *, extra: str | None = None, also: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package.

    `homes` maps each module of the package to the public names that it defines. Where a library is missing, using a name says to install
    `extra`. `also` are further names of the package itself.
    """
    home = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(home[name])
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if extra is None or library == package:
                raise
            missing = library or "a library"
            raise MissingExtra(
                f"{package}.{name} needs {missing}, which is not installed. Run: pip install 'agentlightning[{extra}]'"
            ) from error
        return getattr(module, name)

    return load, lambda: sorted([*home, *also])
