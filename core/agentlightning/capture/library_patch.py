"""A patch of the clients of one library. Importing the module of a patch does not import its library."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, TypeAlias, cast

Models: TypeAlias = Callable[[], Collection[str]]
"""Returns the names and patterns that stand for the model of a rollout."""


class LibraryPatch:
    """A patch of some methods of a library, if it is installed."""

    library: ClassVar[str]
    methods: ClassVar[tuple[tuple[str, str], ...]]
    """(class, method), in the library."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._originals: list[tuple[type, str, Any]] = []

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        """The method in place of the original one."""
        raise NotImplementedError

    def apply(self) -> None:
        """Patch the library, once."""
        if self._originals or find_spec(self.library.partition(".")[0]) is None:
            return
        module = import_module(self.library)
        for class_name, method in self.methods:
            owner = cast("type", getattr(module, class_name))
            original = getattr(owner, method)
            self._originals.append((owner, method, original))
            setattr(owner, method, wraps(original)(self.wrap(owner, original)))

    def remove(self) -> None:
        """Leave the library as it was."""
        while self._originals:
            setattr(*self._originals.pop())
