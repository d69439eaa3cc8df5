"""Containment of queries, and the zip of databases."""

from __future__ import annotations

import sqlite3
import stat
import time
import tracemalloc
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.text_to_sql import archive
from agentlightning_benchmarks.text_to_sql.archive import unpack
from agentlightning_benchmarks.text_to_sql.database import _reading, described_schema, execute, schema_text

WORDS = [
    "SELECT", "FROM", "WHERE", "DELETE", "INSERT", "INTO", "VALUES", "UPDATE", "SET", "DROP", "TABLE", "ATTACH", "AS", "PRAGMA",
    "CREATE", "VACUUM", ";", ",", "(", ")", "*", "=", "'x'", "1", "pet", "owner", "name", "main.pet", "WITH", "RECURSIVE",
    "UNION", "ALL", "count", "sum", "load_extension", "writable_schema", "BEGIN", "COMMIT", "REPLACE", "ALTER", "RENAME", "TO",
    "EXPLAIN",
]  # fmt: skip
LOOP = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make(tmp_path / "pets.sqlite")


def make(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, "home town" TEXT);
            CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, weight REAL, owner_id INTEGER REFERENCES owner(id),
                other REFERENCES owner);
            INSERT INTO owner VALUES (1, 'Ann', 'Oslo'), (2, 'Bob', NULL);
            INSERT INTO pet VALUES (1, 'Rex', 2.5, 1, NULL), (2, 'Tom', 4, 1, NULL), (3, 'Kit', 1, 2, NULL);"""
        )
    return path


def test_a_query_gives_its_rows(pets: Path) -> None:
    result = execute(pets, "SELECT owner.name, count(*) FROM pet JOIN owner ON owner_id = owner.id GROUP BY 1;")
    assert result.rows == (("Ann", 2), ("Bob", 1))
    assert (result.columns, result.error) == (2, None)


def test_a_schema_shows_tables_columns_and_keys(pets: Path) -> None:
    assert schema_text(pets).splitlines() == [
        'owner(id, name, "home town")',
        "pet(id, name, weight, owner_id, other)",
        "pet.owner_id = owner.id",
        "pet.other = owner.id",
    ]
    assert schema_text(pets, limit=40).splitlines() == ['owner(id, name, "home town")', "-- and 3 lines more"]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM pet",
        "UPDATE pet SET name = 'x'",
        "INSERT INTO pet VALUES (9, 'x', 1, 1, 1)",
        "DROP TABLE pet",
        "WITH a AS (SELECT 1) DELETE FROM pet",
        "DELETE FROM pet RETURNING id",
        "CREATE TABLE x (a)",
        "CREATE TEMP TABLE x (a)",
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "ATTACH '{other}' AS other",
        "ATTACH ':memory:' AS other",
        "VACUUM",
        "VACUUM INTO '{other}'",
        "REINDEX",
        "ANALYZE",
        "BEGIN IMMEDIATE",
        "SAVEPOINT a",
        "DETACH main",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA table_info(pet)",
        "SELECT * FROM pragma_table_info('pet')",
        "SELECT load_extension('{other}')",
        "SELECT LOAD_EXTENSION('{other}')",
        "SELECT writefile('{other}', 'x')",
        "SELECT readfile('{other}')",
        "SELECT 1; DELETE FROM pet",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM pet",
        "SELECT",
        "no SQL at all",
        "",
        "-- a comment",
        "SELECT 1\0",
        "SELECT '\ud800'",
        "SELECT zeroblob(1000000000)",
        "SELECT replace(hex(zeroblob(40000)), '0', '0123456789')",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT '" + "x" * 30_000 + "'",
        "SELECT " + ", ".join(["1"] * 300),
    ],
)
def test_what_is_no_reading_query_is_an_error_and_changes_nothing(pets: Path, query: str) -> None:
    before = pets.read_bytes()
    result = execute(pets, query.replace("{other}", str(pets.with_name("other.sqlite"))))
    assert result.error
    assert not result.rows
    assert pets.read_bytes() == before
    assert [each.name for each in pets.parent.iterdir()] == [pets.name], "nothing was made beside it"


@pytest.mark.parametrize(
    "query",
    [
        LOOP,
        "SELECT count(*) FROM " + ", ".join(f"pet {name}" for name in "abcdefghijklmnopqrst"),
        # each row of this one takes milliseconds: what counts instructions would let it run for minutes
        LOOP.replace("count(*)", "sum(instr(hex(zeroblob(20000)), hex(zeroblob(10000)) || x))"),
    ],
)
def test_a_query_that_loops_ends_in_its_time(pets: Path, query: str) -> None:
    began = time.monotonic()
    result = execute(pets, query, seconds=0.2)
    assert result.error == "it took more than 0.2 s"
    assert time.monotonic() - began < 60, "it would run for minutes"


@pytest.mark.parametrize("call", ["printf('%.*c', 2000000000, 'x')", "format('%2000000000d', 1)", "printf('%-*d', 999999999, 1)"])
def test_a_width_that_sqlite_would_fill_for_seconds_is_an_error(pets: Path, call: str) -> None:
    began = time.monotonic()
    assert execute(pets, f"SELECT {call}", seconds=60).error
    assert time.monotonic() - began < 2


def test_a_described_schema_has_types_keys_and_rows(pets: Path) -> None:
    text = described_schema(pets)
    assert text.count("CREATE TABLE") == 2
    assert "PRIMARY KEY" in text
    assert "FOREIGN KEY" in text
    assert "-- 3 rows:" in text or "-- 2 rows:" in text
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(text)  # it is SQL itself
    assert "rows:" not in described_schema(pets, limit=len(text) - 3)
    assert described_schema(pets, limit=120).endswith("-- and 1 tables more")


def test_printf_works_as_sqlite_s(pets: Path) -> None:
    query = "SELECT printf('%.2f %5s|%d%%', 1.005, 'é', 3), format('%08.3f', 2), printf(NULL), printf('%s', x'41')"
    plain = sqlite3.connect(":memory:").execute(query.replace("format(", "printf(")).fetchone()
    assert execute(pets, query).rows == (plain,)


def test_a_quick_query_is_not_held_up_by_its_limit(pets: Path) -> None:
    began = time.monotonic()
    assert execute(pets, "SELECT 1", seconds=60).rows == ((1,),)
    assert time.monotonic() - began < 50, "it waits for no limit"


def test_a_result_with_too_many_rows_is_an_error(pets: Path) -> None:
    assert execute(pets, "SELECT * FROM pet", rows=3).error is None
    assert execute(pets, "SELECT * FROM pet", rows=2).error == "more than 2 rows"
    endless = LOOP.replace("count(*)", "x")
    assert execute(pets, endless).error == "more than 20000 rows"


def chain(link: str, links: int = 17) -> str:
    """Each name stands for two of the one before; without a limit, 17 of them take SQLite seconds, and 25 all the memory."""
    parts = [f"n{i + 1} AS ({link.replace('?', f'n{i}')})" for i in range(links)]
    return f"WITH n0 AS (SELECT 1 AS a), {', '.join(parts)} SELECT * FROM n{links} LIMIT 1"


UNION = "SELECT a FROM ? UNION ALL SELECT a FROM ?"


@pytest.mark.parametrize(
    "query",
    [
        chain(UNION),
        chain("SELECT x.a FROM ? x, ? y"),
        chain('SELECT a FROM "?" UNION ALL SELECT a FROM [?]'),
        chain("SELECT a FROM '?' UNION ALL SELECT a FROM `?`"),
        chain(UNION).replace("AS (SELECT a", "(a) AS NOT MATERIALIZED (SELECT a"),
        chain(UNION).replace("AS (SELECT a", "/* AS */ as -- (\n (SELECT a"),
        chain(UNION).replace("UNION ALL SELECT a FROM n", "UNION ALL SELECT a FROM N"),
        chain(UNION).replace("n", "\u20ac$"),
        f"SELECT * FROM ({chain(UNION)})",
    ],
)
def test_table_expressions_that_double_are_refused_before_they_expand(pets: Path, query: str) -> None:
    assert execute(pets, query).error == "its common table expressions name each other too often"


def test_table_expressions_as_people_write_them_are_queries(pets: Path) -> None:
    heavy = "heavy AS (SELECT heavy.* FROM pet heavy WHERE heavy.weight > 2)"
    query = f"WITH {heavy}, owners(id) AS (SELECT owner_id FROM heavy) SELECT count(*) FROM heavy JOIN owners ON heavy.owner_id = owners.id"
    assert execute(pets, query).rows == ((4,),)
    assert execute(pets, chain(UNION, 10)).rows == ((1,),)
    assert execute(pets, LOOP.replace("FROM c)", "FROM c WHERE x < 5)")).rows == ((5,),)


def test_a_result_with_too_many_bytes_is_an_error(pets: Path) -> None:
    tracemalloc.start()
    try:
        error = execute(pets, LOOP.replace("count(*)", "hex(zeroblob(20000))")).error
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert error == "more than 10 MB"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.sampled_from(WORDS),
        max_size=12,
    ),
    head=st.sampled_from(["", "DELETE FROM pet ", "WITH a(x) AS (SELECT 1) ", "EXPLAIN ", "CREATE TRIGGER t AFTER INSERT ON pet BEGIN "]),
)
def test_no_text_changes_a_database(pets: Path, words: list[str], head: str) -> None:
    before = pets.read_bytes()
    execute(pets, head + " ".join(words), seconds=1)
    assert pets.read_bytes() == before
    assert [each.name for each in pets.parent.iterdir()] == [pets.name]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60))
def test_any_text_at_all_is_a_result_or_an_error(pets: Path, query: str) -> None:
    assert execute(pets, query).rows is not None


def test_even_without_the_authorizer_nothing_can_be_written(pets: Path) -> None:
    with _reading(pets) as connection:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM pet")
        with pytest.raises(sqlite3.Error):
            connection.execute("ATTACH ':memory:' AS other")
    assert execute(pets, "SELECT count(*) FROM pet").rows == ((3,),)


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite"):
        execute(tmp_path / "none.sqlite", "SELECT 1")
    assert not (tmp_path / "none.sqlite").exists(), "looking for it must not make it"


def test_a_broken_database_is_raised_and_named(tmp_path: Path, pets: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("this is a text that is long enough to be read as a header of a database, and is none" * 4)
    with pytest.raises(OSError, match=r"text\.sqlite: this is not an SQLite database"):
        execute(text, "SELECT 1")
    data = bytearray(pets.read_bytes())
    data[4096 + 1 :] = b"\xff" * (len(data) - 4097)  # the pages behind the first
    pets.write_bytes(data)
    with pytest.raises(OSError, match=r"pets\.sqlite: the database is broken"):
        execute(pets, "SELECT * FROM pet")


def test_a_path_with_signs_of_an_address_is_a_path(tmp_path: Path) -> None:
    assert execute(make(tmp_path / "a?mode=rwc&x#y%20.sqlite"), "SELECT count(*) FROM pet").rows == ((3,),)


# The zip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive_:
        for name, data in members.items():
            archive_.writestr(name, data)
    return path


def test_databases_are_unpacked_once_into_the_cache(tmp_path: Path, cache: Path, pets: Path) -> None:
    path = pack(tmp_path / "database.zip", {"database/pets/pets.sqlite": pets.read_bytes()})
    folder = unpack(path, "database")
    assert folder.is_relative_to(cache)
    assert execute(folder / "pets" / "pets.sqlite", "SELECT count(*) FROM pet").rows == ((3,),)
    marker = folder / "pets" / "marker"
    marker.touch()
    assert unpack(path, "database") == folder
    assert marker.exists(), "it was not unpacked again"
    assert [each.name for each in folder.parent.iterdir()] == [folder.name], "no part is left over"
    other = pack(tmp_path / "database.zip", {"database/cats/cats.sqlite": pets.read_bytes()})
    assert unpack(other, "database") != folder, "another zip has another folder"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.sqlite", "/etc/evil.sqlite", "database/../../evil.sqlite", "database/pets/../../../evil.sqlite", "database/evil.sqlite",
        "database/pets/evil.sh", "other/pets/pets.sqlite", "C:\\evil.sqlite", "database\\pets\\pets.sqlite", "database/.x/pets.sqlite",
        "database/pets/deep/pets.sqlite",
    ],
)  # fmt: skip
def test_a_member_with_another_name_is_refused(tmp_path: Path, cache: Path, pets: Path, name: str) -> None:
    path = pack(tmp_path / "database.zip", {"database/pets/pets.sqlite": pets.read_bytes(), name: pets.read_bytes()})
    with pytest.raises(ConfigError, match=r"database\.zip: the zip holds"):
        unpack(path, "database")
    assert not list(tmp_path.rglob("evil*"))
    assert not list(cache.rglob("*.sqlite")), "nothing is left of a zip that was refused"


def test_a_link_in_a_zip_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "database.zip"
    with zipfile.ZipFile(path, "w") as archive_:
        link = zipfile.ZipInfo("database/pets/pets.sqlite")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive_.writestr(link, "/etc/passwd")
    with pytest.raises(ConfigError, match="holds"):
        unpack(path, "database")


def test_a_broken_zip_is_named(tmp_path: Path, cache: Path, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.zip: the databases cannot be read"):
        unpack(tmp_path / "none.zip", "database")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ConfigError, match=r"text\.zip: the zip is broken"):
        unpack(tmp_path / "text.zip", "database")
    with pytest.raises(ConfigError, match=r"empty\.zip: the zip is empty"):
        unpack(pack(tmp_path / "empty.zip", {}), "database")
    with pytest.raises(ConfigError, match=r"wrong\.zip: database/a/a\.sqlite is not an SQLite database"):
        unpack(pack(tmp_path / "wrong.zip", {"database/a/a.sqlite": b"text"}), "database")
    path = pack(tmp_path / "bits.zip", {"database/pets/pets.sqlite": pets.read_bytes()})
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"bits\.zip: the zip is broken"):
        unpack(path, "database")
    monkeypatch.setattr(archive, "LARGEST", 1000)
    with pytest.raises(ConfigError, match=r"large\.zip: database/pets/pets\.sqlite would have"):
        unpack(pack(tmp_path / "large.zip", {"database/pets/pets.sqlite": pets.read_bytes()}), "database")
    assert not list(cache.rglob("*.sqlite"))
