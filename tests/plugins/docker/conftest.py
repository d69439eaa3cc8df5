"""A real container engine, and an image that borrows this machine's Python. Tests that need them are skipped where no container starts."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

IMAGE = "agl-test-python:1"
ROOT = Path(__file__).parents[3]
LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
OLD_RUNTIME = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
"""
"""A configuration of podman for machines that let nobody raise limits."""


def borrowed() -> list[str]:
    """Options that show the container this machine's system folder and this Python, to read only."""
    folders = {"/usr", sys.base_prefix, sys.prefix, str(ROOT)}
    mounts = [word for folder in sorted(folders) for word in ("--volume", f"{folder}:{folder}:ro")]
    return [*mounts, "--env", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin", "--env", "PYTHONDONTWRITEBYTECODE=1"]


def _image() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("usr", "proc", "sys", "dev", "tmp", "etc", "work"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name, target in LINKS.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return data.getvalue()


def _runs(engine: str) -> bool:
    """Whether a container of the borrowed Python starts."""
    subprocess.run(
        [engine, "import", "--change", "WORKDIR /work", "-", IMAGE], input=_image(), capture_output=True, timeout=60, check=False
    )
    command = [engine, "run", "--rm", "--network", "none", "--memory", "200m", "--pids-limit", "50", *borrowed(), IMAGE, "python3", "-V"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture(scope="session", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an engine that starts containers here."""
    name = request.param
    if sys.platform != "linux" or shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if not _runs(name):
            configuration = tmp_path_factory.mktemp("podman") / "containers.conf"
            configuration.write_text(OLD_RUNTIME)
            patch.setenv("CONTAINERS_CONF", str(configuration))
            if name != "podman" or not _runs(name):
                pytest.skip(f"{name} starts no container here")
        yield name


class Containers:
    """The containers of one test."""

    def __init__(self, engine: str) -> None:
        self.engine, self.label = engine, f"test={uuid4().hex}"

    def table(self, **runner: Any) -> dict[str, Any]:
        """The `[runner]` table of the test."""
        options = [*borrowed(), "--label", self.label, *runner.pop("options", ())]
        return {"name": "docker", "engine": self.engine, "image": IMAGE, "options": options, **runner}

    def names(self) -> list[str]:
        """The containers, ended ones too."""
        command = [self.engine, "ps", "--all", "--filter", f"label={self.label}", "--format", "{{.Names}}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def wait(self, count: int, seconds: float = 30) -> bool:
        """Whether there are so many within some seconds."""
        deadline = time.monotonic() + seconds
        while len(self.names()) != count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def containers(engine: str) -> Iterator[Containers]:
    started = Containers(engine)
    yield started
    for name in started.names():
        subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)
