"""Writes a store to a folder of Parquet files, and reads such a folder. `columns.py` has the tables.

Row group `k` of every table has the rows of the same rollouts, in the order of `add`. So a reader needs a few groups in memory only.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agentlightning.contracts.store import LightningStore, RolloutState, StoredRollout
from agentlightning.errors import MissingExtra, StoreError, StoreVersionError
from agentlightning.stores.columns import PER_ROLLOUT, POLICIES, ROLLOUTS, Kind, Row, Table, rows_of, stored_of
from agentlightning.types import Ints, Policy

VERSION = 2
"""The version of the tables. A field that a value gains with a default needs no new version."""
GROUP = 256
"""Rollouts of one row group."""
KEPT_GROUPS = 3
"""Row groups that a reader keeps decoded."""
METADATA = b"agentlightning"


def _arrow() -> Any:
    """pyarrow, with its module `parquet`."""
    try:
        importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise MissingExtra("Parquet files need pyarrow, which is not installed. Run: pip install 'agentlightning[parquet]'") from error
    return importlib.import_module("pyarrow")


def _schema(table: Table) -> Any:
    arrow = _arrow()
    kinds = {
        "text": arrow.string(), "json": arrow.string(), "sampling": arrow.string(), "integer": arrow.int64(), "number": arrow.float64(),
        "flag": arrow.bool_(), "ids": arrow.list_(arrow.int32()), "floats": arrow.list_(arrow.float32()),
    }  # fmt: skip
    fields = [(name, kinds[kind]) for name, kind in (table.columns | table.more).items()]
    return arrow.schema(fields, metadata={METADATA: json.dumps({"version": VERSION}).encode()})


async def export(
    store: LightningStore,
    folder: Path,
    *,
    reward: Callable[[StoredRollout], float | None],
    report: Callable[[int], None] = lambda count: None,
) -> int:
    """Write a store to a new folder, and return the number of rollouts. `reward` is the reward of a rollout, for a derived column.

    `report` hears how many rollouts are written. Raises `StoreError` if the folder exists; a failed export leaves no folder.
    """
    with _complete_or_absent(folder) as part, ExitStack() as files:
        writers = {table.name: _Writer(part / f"{table.name}.parquet", _schema(table), files) for table in (*PER_ROLLOUT, POLICIES)}
        writers["policies"].write([POLICIES.row(policy) for policy in await store.policies()])
        return await _export_rollouts(store, writers, reward, report)


@contextmanager
def _complete_or_absent(folder: Path) -> Generator[Path]:
    """A folder to write, which gets its name at the end of the block."""
    if folder.exists():
        raise StoreError(f"{folder} exists already. Name a new folder, or remove this one.")
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.rename(folder)
    except OSError as error:
        raise StoreError(
            f"Cannot write {part}: {error.strerror or error}. Free some space, or name a folder that you may write."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


async def _export_rollouts(
    store: LightningStore,
    writers: dict[str, _Writer],
    reward: Callable[[StoredRollout], float | None],
    report: Callable[[int], None],
) -> int:
    count, cursor = 0, 0
    while True:
        states, cursor = await store.list(after=cursor, limit=GROUP)
        if not states:
            return count
        tables: dict[str, list[Row]] = {table.name: [] for table in PER_ROLLOUT}
        for state in states:
            stored = await store.read(state.rollout.id)
            for name, rows in rows_of(stored, reward(stored)).items():
                tables[name] += rows
        for name, rows in tables.items():
            writers[name].write(rows)
        count += len(states)
        report(count)


class _Writer:
    """One file, a row group per `write`."""

    def __init__(self, path: Path, schema: Any, files: ExitStack) -> None:
        self._schema = schema
        self._file = files.enter_context(_arrow().parquet.ParquetWriter(path, schema, compression="zstd"))

    def write(self, rows: Sequence[Row]) -> None:
        """Write a row group, also an empty one."""
        try:
            self._file.write_table(_arrow().Table.from_pylist(list(rows), schema=self._schema))
        except (OverflowError, _arrow().ArrowInvalid) as error:
            raise StoreError(f"A rollout does not fit the export: {error}. Its numbers need 64 bits at most.") from error


class ParquetSource:
    """The rollouts and policies in an export, for `transfer.copy`."""

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` for another folder, and `StoreVersionError` for an export of a newer version."""
        self._files = {table.name: self._open(folder / f"{table.name}.parquet") for table in (*PER_ROLLOUT, POLICIES)}
        if len({self._files[table.name].num_row_groups for table in PER_ROLLOUT}) != 1:
            raise StoreError(f"The files in {folder} come from different exports. Export the store again.")
        rollouts = self._files["rollouts"]
        sizes = [rollouts.metadata.row_group(group).num_rows for group in range(rollouts.num_row_groups)]
        self._starts: Ints = np.cumsum([0, *sizes])
        seqs: Ints = rollouts.read(columns=["seq"])["seq"].to_numpy()
        self._order: Ints = np.argsort(seqs, kind="stable")
        self._seqs = seqs[self._order]
        self._group = lru_cache(KEPT_GROUPS)(self._read_group)

    @staticmethod
    def _open(path: Path) -> Any:
        arrow = _arrow()
        try:
            file = arrow.parquet.ParquetFile(path)
        except (OSError, arrow.ArrowInvalid) as error:
            raise StoreError(f"Cannot read {path}: {error}. Name a folder that `agl store export` wrote.") from error
        metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
        if METADATA not in metadata:
            raise StoreError(f"{path} is no table of an export. Name a folder that `agl store export` wrote.")
        version = json.loads(metadata[METADATA])["version"]
        if version != VERSION:
            reads = f"this agentlightning reads version {VERSION}"
            advice = "Upgrade agentlightning" if version > VERSION else "Export the store again"
            raise StoreVersionError(f"{path} has version {version}, and {reads}. {advice}.")
        return file

    async def page(self, after: int, limit: int, order: Literal["added", "changed"]) -> tuple[list[RolloutState], int]:
        """Return the states of a page, and the cursor of the next one."""
        end = min(after + limit, len(self._order))
        if order == "added":
            return [(await self._stored(place, states_only=True))[0] for place in range(after, end)], end
        return [(await self._stored(place))[0] for place in self._order[after:end].tolist()], end

    async def read(self, state: RolloutState) -> StoredRollout:
        return await self._stored(int(self._order[np.searchsorted(self._seqs, state.seq)]))

    async def policies(self) -> list[Policy]:
        return [POLICIES.value(row) for row in self._files["policies"].read().to_pylist()]

    async def _stored(self, place: int, *, states_only: bool = False) -> StoredRollout:
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        return (await asyncio.to_thread(self._group, group, states_only))[place - int(self._starts[group])]

    def _read_group(self, group: int, states_only: bool) -> list[StoredRollout]:
        tables = PER_ROLLOUT[:2] if states_only else PER_ROLLOUT
        return stored_of({table.name: self._rows(table, group) for table in tables})

    def _rows(self, table: Table, group: int) -> list[Row]:
        file = self._files[table.name]
        names = [name for name in table.columns | (table.more if table is ROLLOUTS else {}) if name in file.schema_arrow.names]
        content = file.read_row_group(group, columns=names)
        columns = [_values(content[name], table.columns.get(name, "text")) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _values(column: Any, kind: Kind) -> Sequence[Any]:
    """The values of a column. Lists of numbers become arrays at once, because Python numbers take ten times their memory."""
    if kind not in ("ids", "floats"):
        return column.to_pylist()
    lists = column.combine_chunks()
    numbers, ends, present = lists.values.to_numpy(), lists.offsets.to_numpy(), lists.is_valid().to_numpy(zero_copy_only=False)
    return [numbers[start:end].copy() if valid else None for start, end, valid in zip(ends, ends[1:], present, strict=False)]
