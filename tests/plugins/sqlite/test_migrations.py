"""Files of earlier versions open with all their data, whatever happens in between."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from agentlightning.testing.store import ended_rollout
from agentlightning_sqlite import migrations
from agentlightning_sqlite.schema import VERSION
from agentlightning_sqlite.store import SQLiteStore

SCHEMAS = Path(__file__).with_name("schemas")
DIES = """
import os, signal, sqlite3, sys
from pathlib import Path
from agentlightning_sqlite import migrations, store
original = migrations.run_script
def run_and_die(connection, script):
    original(connection, script)
    os.kill(os.getpid(), signal.SIGKILL)
migrations.run_script = run_and_die
store.SQLiteStore(Path(sys.argv[1]))
"""


def tables(path: Path) -> list[tuple[str, str, str]]:
    """Name, table and columns of everything in a database."""
    with closing(sqlite3.connect(path)) as sql:
        objects = sql.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY type, name").fetchall()
        kinds = {"table": "table_xinfo", "index": "index_xinfo"}
        return [(kind, name, str(sql.execute(f"PRAGMA {kinds[kind]}({name})").fetchall())) for kind, name, _ in objects]


async def old_store(path: Path, version: int) -> list[list[tuple[object, ...]]]:
    """Make a store of an earlier version with five rollouts, from that version's SQL. Return its rows."""
    await (new := SQLiteStore(path.with_name("new.db"))).put([ended_rollout(turns=3) for _ in range(5)])
    await new.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.executescript((SCHEMAS / f"version_{version}.sql").read_text())
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("ATTACH ? AS new", (str(path.with_name("new.db")),))
        names = ("rollouts", "attempts", "records", "policies")
        for name in names:
            sql.execute(f"INSERT INTO {name} SELECT * FROM new.{name}")
        return [sql.execute(f"SELECT * FROM {name}").fetchall() for name in names]


def rows(path: Path) -> list[list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as sql:
        return [sql.execute(f"SELECT * FROM {name}").fetchall() for name in ("rollouts", "attempts", "records", "policies")]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as sql:
        return sql.execute("PRAGMA user_version").fetchone()[0]


def test_every_version_from_the_oldest_has_a_migration_and_its_schema() -> None:
    assert list(migrations.MIGRATIONS) == list(range(migrations.OLDEST + 1, VERSION + 1))
    assert [path.stem for path in sorted(SCHEMAS.iterdir())] == [f"version_{v}" for v in range(migrations.OLDEST, VERSION)]


@pytest.mark.parametrize("earlier", range(migrations.OLDEST, VERSION))
async def test_a_store_of_an_earlier_version_opens_with_all_its_data(tmp_path: Path, earlier: int) -> None:
    path = tmp_path / "old.db"
    before = await old_store(path, earlier)
    store = SQLiteStore(path)
    states, _ = await store.list()
    assert len(states) == 5
    for state in states:
        _, (records,) = await store.read(state.rollout.id)
        assert [len(c.prompt_ids) for c in records.completions] == [3, 6, 9]
    await store.put([ended_rollout()])
    assert await store.delete([states[0].rollout.id]) == 1
    await store.close()
    await SQLiteStore(tmp_path / "fresh.db").close()
    assert tables(path) == tables(tmp_path / "fresh.db")
    assert len(before[0]) == 5
    assert version(path) == VERSION


async def test_a_process_killed_in_a_migration_leaves_the_version_before_with_all_its_data(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    before = await old_store(path, VERSION - 1)
    killed = subprocess.run([sys.executable, "-c", DIES, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert version(path) == VERSION - 1
    assert rows(path) == before
    await SQLiteStore(path).close()
    assert version(path) == VERSION
    assert rows(path) == before


def test_processes_may_migrate_a_store_at_the_same_time(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as sql:
        sql.executescript((SCHEMAS / f"version_{VERSION - 1}.sql").read_text())
    script = "import sys; from pathlib import Path; from agentlightning_sqlite.store import SQLiteStore; SQLiteStore(Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "old.db")], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert version(tmp_path / "old.db") == VERSION
