"""Code blocks of the documents, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[3]


def blocks(file: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def code(file: str, first: str) -> str:
    """The one Python block whose first line begins with `first`."""
    (block,) = [block for block in blocks(file, "python") if block.startswith(first)]
    return block


def length(source: str) -> int:
    """Lines of code, without imports, comments and empty lines."""
    return len([line for line in source.splitlines() if line.strip() and not line.startswith(("import ", "from ", "#"))])


def module_of(source: str, name: str) -> Any:
    """The source as a module of its own."""
    module = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module
