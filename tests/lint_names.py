"""Reject names that do not say what they hold (`each`, `found`, ...): variables, parameters, attributes, functions and classes.

    python tests/lint_names.py FOLDER...

`make lint` runs it. A comprehension `for each in rollouts` says nothing about `each`; `for rollout in rollouts` does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

BANNED = frozenset({"each", "found", "made", "said", "some", "there", "whole", "beside", "known", "given"})


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that a file names."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case _:
                pass


def main(folders: list[str]) -> int:
    wrong = 0
    for folder in folders:
        for file in sorted(Path(folder).rglob("*.py")):
            for line, name in sorted(set(bindings(ast.parse(file.read_text(encoding="utf-8"))))):
                if name.strip("_").lower() in BANNED:
                    print(f"{file}:{line}: the name {name!r} does not say what it holds. Use a noun (see CONTRIBUTING.md).")
                    wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
