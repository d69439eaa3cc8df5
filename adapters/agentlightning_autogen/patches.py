"""Replaces methods on whole class families, and restores them.

AutoGen calls agents, tools, and model clients through methods that each class redefines. A family is therefore a root class, all its
subclasses, and all subclasses created while the patches are installed. Uninstalling leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import isfunction
from typing import Any, TypeAlias, cast

Wrap: TypeAlias = Callable[[Any], Any]
"""Returns the replacement of a method."""


class Patches:
    """The patches of one installation."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def family(self, root: type, wraps: Mapping[str, Wrap]) -> None:
        """Wrap these methods wherever a class of the family defines them."""
        for cls in _below(root):
            self.methods(cls, wraps)
        self._watch(root, wraps)

    def methods(self, cls: type, wraps: Mapping[str, Wrap]) -> None:
        """Wrap the methods that the class itself defines, except abstract ones."""
        for name, wrap in wraps.items():
            original = vars(cls).get(name)
            if isfunction(original) and not getattr(original, "__isabstractmethod__", False):
                setattr(cls, name, wrap(original))
                self._undo.append(_restorer(cls, name, original))

    def remove(self) -> None:
        """Restore everything, in reverse order."""
        while self._undo:
            self._undo.pop()()

    def _watch(self, root: type, wraps: Mapping[str, Wrap]) -> None:
        own = vars(root).get("__init_subclass__")

        def init_subclass(cls: Any, **kwargs: Any) -> None:
            if own is not None:
                own.__get__(None, cls)(**kwargs)
            else:
                cast("Any", super(root, cls)).__init_subclass__(**kwargs)
            self.methods(cls, wraps)

        cast("Any", root).__init_subclass__ = classmethod(init_subclass)
        self._undo.append(_restorer(root, "__init_subclass__", own))


def _below(root: type) -> Iterator[type]:
    seen: set[type] = set()
    waiting = [root]
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.add(cls)
            yield cls
            waiting.extend(cls.__subclasses__())


def _restorer(cls: type, name: str, original: Any) -> Callable[[], None]:
    def restore() -> None:
        if original is None:
            delattr(cls, name)
        else:
            setattr(cls, name, original)

    return restore
