"""`agl store` and `agl score`, as a user runs them."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from agentlightning.stores.common import open_store
from agentlightning.testing.store import ended_rollout
from agentlightning.types import Rollout

AGL = Callable[..., tuple[int, str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store file in the current folder: 30 rollouts that ended in 1970, one of them failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    async def fill() -> None:
        opened = open_store("agl.db")
        await opened.put([*(ended_rollout(turns=2) for _ in range(29)), ended_rollout("failed")])
        await opened.close()

    asyncio.run(fill())
    return tmp_path / "agl.db"


def ids(path: str) -> list[str]:
    async def read() -> list[Rollout]:
        opened = open_store(path)
        states, _ = await opened.list(limit=9999)
        await opened.close()
        return [state.rollout for state in states]

    return [rollout.id for rollout in asyncio.run(read())]


@pytest.mark.parametrize("command", [["store", "export"], ["store", "import"], ["store", "copy"], ["store", "prune"], ["score"]])
def test_the_help_teaches_by_example(agl: AGL, command: list[str]) -> None:
    code, output = agl(*command, "--help")
    assert code == 0
    assert "Example" in output
    assert f"agl {' '.join(command)}" in output


def test_rollouts_travel_through_files_and_stores(agl: AGL, store: Path) -> None:
    assert agl("store", "export", "agl.db", "records") == (0, "Exported 30 rollouts to records.\n")
    assert agl("store", "import", "records", "sqlite:second.db") == (0, "Copied 30 rollouts.\n")
    assert agl("store", "copy", "second.db", "third.db") == (0, "Copied 30 rollouts.\n")
    assert agl("store", "copy", "second.db", "third.db", "--resume") == (0, "Copied 30 rollouts, 30 of them earlier.\n")
    assert ids("agl.db") == ids("third.db")
    code, output = agl("store", "copy", "nowhere.db", "third.db")
    assert (code, "There is no store file" in output) == (2, True)


@pytest.mark.slow
def test_ctrl_c_stops_a_copy_and_resume_continues(agl: AGL, store: Path) -> None:
    async def fill() -> None:
        opened = open_store("agl.db")
        for _ in range(40):
            await opened.put([ended_rollout(turns=3) for _ in range(150)])
        await opened.close()

    asyncio.run(fill())
    command = [sys.executable, "-m", "agentlightning", "store", "copy", "agl.db", "copy.db"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell starts its background jobs deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while process.poll() is None and succeeded("copy.db") < 500:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Stopped after [\d,]+ rollouts\. The same command with --resume continues\.", error)
    assert 500 <= succeeded("copy.db") < 6029
    code, output = agl("store", "copy", "agl.db", "copy.db", "--resume")
    assert code == 0
    assert (match := re.fullmatch(r"Copied 6,030 rollouts, ([\d,]+) of them earlier\.\n", output))
    assert int(match[1].replace(",", "")) >= 500
    assert ids("agl.db") == ids("copy.db")


def succeeded(path: str) -> int:
    """How many rollouts a store file has in this status; 0 without a file."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as sql:
        return sql.execute("SELECT count(*) FROM rollouts WHERE status = 'succeeded'").fetchone()[0]
    return 0


def test_prune_shows_first_and_deletes_with_yes(agl: AGL, store: Path) -> None:
    code, output = agl("store", "prune", "agl.db", "--older-than", "30d")
    assert code == 0
    assert "Would delete 30 rollouts. 0 do not match. Add --yes to delete them." in output
    assert len(ids("agl.db")) == 30
    code, output = agl("store", "prune", "agl.db", "--older-than", "30d", "--status", "failed", "--yes")
    assert code == 0
    assert "Deleted 1 rollouts. 29 do not match." in output
    assert "MiB now." in output
    for wrong in (["--older-than", "soon"], ["--older-than", "1d", "--status", "running"]):
        code, output = agl("store", "prune", "agl.db", *wrong)
        assert (code, wrong[-1] in output) == (2, True)


def test_score_shows_what_changes_and_records_it(agl: AGL, store: Path) -> None:
    Path("judge.py").write_text("def one(rollout):\n    return 1.0\n")
    code, output = agl("score", "agl.db", "--reward", "judge:one", "--dry-run")
    assert code == 0
    assert "29 of 29 rollouts change. 1 others did not succeed and keep their reward." in output
    assert "Would record 29 rewards." in output
    lines = [line.split() for line in output.splitlines()]
    assert ["mean", "reward", "0.500", "1.000"] in lines
    assert sum(line[1:] == ["0.500", "1.000"] and len(line[0]) == 32 for line in lines) == 10
    assert "Recorded 29 rewards." in agl("score", "agl.db", "--reward", "judge:one")[1]
    assert "Recorded 0 rewards." in agl("score", "agl.db", "--reward", "judge:one")[1]
    code, output = agl("score", "agl.db", "--reward", "judge:two")
    assert (code, "two" in output) == (2, True)
