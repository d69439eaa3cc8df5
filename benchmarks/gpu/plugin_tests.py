"""Runs a plugin's tests on this machine's device: `plugin_tests.py torch`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from measuring import DRY, Figures

ROOT = Path(__file__).resolve().parents[2]
TOY = "test_reading.py"


class Outcomes:
    """A pytest plugin that writes failures as they happen, and the counts at the end."""

    def __init__(self, figures: Figures) -> None:
        self.figures, self.counts, self.began = figures, Counter[str](), time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            if report.failed:
                self.figures.add(test=report.nodeid, error=str(report.longrepr)[-300:])

    def pytest_sessionfinish(self) -> None:
        self.figures.add(**self.counts, seconds=round(time.monotonic() - self.began, 1))


def main(plugin: str) -> None:
    # With the real library installed, the tests use it. Otherwise they use a stand-in.
    if plugin in ("vllm", "verl"):
        os.environ[f"AGL_TEST_{plugin.upper()}"] = sys.executable
    folder = ROOT / "tests" / "plugins" / plugin
    target = folder / TOY if DRY and (folder / TOY).exists() else folder
    raise SystemExit(pytest.main([str(target), "-q", "--rootdir", str(ROOT), "-p", "no:cacheprovider"], plugins=[Outcomes(Figures())]))


if __name__ == "__main__":
    main(sys.argv[1])
