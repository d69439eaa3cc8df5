"""Finds a Python with verl: `trainer.python`, or this one."""

from __future__ import annotations

import shutil
import sys

from agentlightning.errors import ConfigError
from agentlightning.runner.short_process import ask_python

ASK = """
import importlib.metadata, json, torch
print(json.dumps({"verl": importlib.metadata.version("verl"), "cuda": torch.cuda.is_available()}))
"""
HINT = "Run: pip install 'agentlightning[torch,verl]', or name a Python with verl: trainer.python = \"/path/to/bin/python\""


def find_verl(python: str | None) -> tuple[str, bool]:
    """A Python with verl, and whether it sees a GPU. Raises `ConfigError`."""
    program = shutil.which(python) if python is not None else sys.executable
    if program is None:
        raise ConfigError(f"trainer.python is {python!r}, which is not a program. {HINT}")
    try:
        answer = ask_python(program, ASK)
    except (OSError, ValueError) as error:
        raise ConfigError(f"trainer 'verl': {program} has no verl ({error}). {HINT}") from error
    return program, bool(answer["cuda"])
