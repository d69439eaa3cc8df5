"""Finds docker or podman, and builds their command lines."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from agentlightning.errors import ConfigError
from agentlightning.runner.program import FOREIGN
from agentlightning_docker.inside import FOLDER, PROXIES
from agentlightning_docker.settings import DockerSettings

NAMES = ("docker", "podman")
LABEL = "agentlightning"
"""The label of our containers: `docker ps --filter label=agentlightning`."""
PATIENCE = 30.0
"""Seconds for a command that starts no container."""


def find_engine(settings: DockerSettings) -> str:
    """The first engine that works here. Raises `ConfigError` if none does, or if it does not have the image."""
    names = NAMES if settings.engine is None else (settings.engine,)
    reasons: list[str] = []
    for name in names:
        problem = _problem([name, "version"])
        if problem is None:
            check_image(name, settings.image)
            return name
        reasons.append(f"{name}: {problem}")
    advice = f"start the daemon of {names[0]}" if names == ("docker",) else "install podman or start the daemon of docker"
    raise ConfigError(f"runner.name is 'docker', but no container can start here. {'; '.join(reasons)}. To fix this, {advice}.")


def check_image(engine: str, image: str) -> None:
    """Raise `ConfigError` if this machine lacks the image."""
    problem = _problem([engine, "image", "inspect", "--format", "{{.Id}}", image])
    if problem is not None:
        raise ConfigError(f"runner.image is {image!r}, which {engine} does not have ({problem}). Run: {engine} pull {image}, or build it.")


def run_command(engine: str, name: str, folder: Path, settings: DockerSettings) -> list[str]:
    """The command line of one container, with nothing secret on it. `folder` is the rollout's; the container sees it as `/agl`."""
    writable = [word for file in ("reward", "records") for word in ("--volume", f"{folder / file}:{FOLDER}/{file}")]
    return [
        engine, "run", "--rm", "--name", name, "--label", LABEL, *settings.options,
        "--network", "none", "--cpus", f"{settings.cpus:g}", "--memory", settings.memory, "--memory-swap", settings.memory,
        "--pids-limit", str(settings.processes), "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "--security-opt", "label=disable",  # SELinux would close the sockets in the folder
        "--log-driver", "none", "--pull", "never", "--volume", f"{folder}:{FOLDER}:ro", *writable,
        "--entrypoint", "python3", settings.image, f"{FOLDER}/inside.py",
    ]  # fmt: skip


def engine_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of the engine's command. Podman hands proxies, which may hold passwords, to its containers."""
    return {name: value for name, value in environment.items() if name not in FOREIGN and name.lower() not in PROXIES}


def _problem(command: list[str]) -> str | None:
    """Why a command of an engine does not work; None: it does."""
    if shutil.which(command[0]) is None:
        return "not installed"
    try:
        answer = subprocess.run(  # noqa: S603 (docker or podman, with our arguments)
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=engine_environment()
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None if answer.returncode == 0 else (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1].rstrip(".")
