"""The scripts in benchmarks/performance that print ratios run, at a size at which their bounds mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "performance"
SMALL = {
    "conversion": ("--rollouts 8 --turns 3 --prompt 16 --reply 4 --observation 4 --repeat 1", "compared"),
    "advantage": ("--rollouts 16 --turns 3 --tokens 2 --repeat 1", "per_step + dr_grpo"),
    "forest": ("--rollouts 2 --turns 2 --prompt 8 --reply 2 --observation 2 --repeat 1 --threads 1", "one row per"),
    "attention": ("--groups 1 --prompt 8 --repeat 1", "dense mask"),
}
LONG = ("forest", "attention")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.mark.parametrize("script", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SMALL])
def test_a_script_prints_its_ratios_and_fails_only_where_a_bound_is_missed(script):
    arguments, expected = SMALL[script]
    found = run(script, *arguments.split())
    assert expected in found.stdout, found.stderr
    assert "ratio" in found.stdout
    missed = "bounds missed:" in found.stderr
    assert found.returncode == missed, found.stderr


@pytest.mark.parametrize("script", ["conversion", "advantage", "trl", "store_http", "store_postgres"])  # the others load torch for it
def test_the_help_of_a_script_says_how_to_run_it(script):
    found = run(script, "--help")
    assert found.returncode == 0
    assert f"python benchmarks/performance/{script}.py" in found.stdout
