"""What the page shows: the runs of a folder, and single stores. A store opens at its first use, and stays open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from agentlightning.config.store_address import shown_address
from agentlightning.contracts.store import LightningStore, StoredRollout
from agentlightning.errors import ConfigError, NotFound, UnknownRun
from agentlightning.page.contributions import Contributions
from agentlightning.records.shown import with_step
from agentlightning.records.source import RecordsSource, find_records, is_store_address, load_tokenizer, run_records
from agentlightning.stores.common import open_store
from agentlightning.training.production.opening import open_filled
from agentlightning.training.run_folder import RunFolder

Decode = Callable[[Sequence[int]], str]


class Source:
    """One run or one store, with its open store."""

    def __init__(self, name: str, records: RecordsSource, store: LightningStore | None = None) -> None:
        """`store`: of somebody else, who closes it."""
        self.name, self.records = name, records
        self._store, self._is_own = store, store is None
        self._production: LightningStore | None = None
        lookahead = int(records.config.get("collection", {}).get("max_staleness", 0))
        self.contributions = Contributions(records.run, lookahead)

    @property
    def run(self) -> RunFolder | None:
        """The run; None: a store without one."""
        return self.records.run

    @property
    def store(self) -> LightningStore:
        """The store, opened at the first use."""
        if self._store is None:
            self._store = open_store(self.records.address)
        return self._store

    async def read(self, rollout_id: str) -> StoredRollout:
        """Read a rollout of the store, or one that the run replayed from another store."""
        try:
            return await self.store.read(rollout_id)
        except NotFound:
            step = self.replayed.get(rollout_id)
            if step is None:
                raise
        state, attempts = await self.production.read(rollout_id)
        return with_step(state, step), attempts

    async def of_group(self, name: str, limit: int) -> list[str]:
        """The ids of a group's rollouts, perhaps replayed ones."""
        states, _ = await self.store.list(group=name, limit=limit)
        if not states and self.replayed:
            states, _ = await self.production.list(group=name, limit=limit)
            states = [state for state in states if state.rollout.id in self.replayed]
        return [state.rollout.id for state in states]

    @property
    def production(self) -> LightningStore:
        """The store of the replayed rollouts, opened at the first use. Raises `StoreError` if it is gone."""
        if self._production is None:
            self._production = open_filled(str(self.records.production))
        return self._production

    @property
    def replayed(self) -> Mapping[str, int]:
        """The rollouts that the run replayed, by id, each with the step that trained it. The latest come first."""
        return {} if self.records.production is None else self.contributions.steps_of()

    @cached_property
    def decode(self) -> Decode | None:
        """Token ids to text; None: the tokenizer is not on this machine."""
        tokenizer = load_tokenizer(self.records)
        return None if tokenizer is None else lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))

    async def close(self) -> None:
        if self._store is not None and self._is_own:
            await self._store.close()
        if self._production is not None:
            await self._production.close()


@dataclass
class Library:
    """The runs below a folder by their names there, and stores by their names."""

    folder: Path | None
    stores: Mapping[str, RecordsSource] = field(default_factory=dict[str, RecordsSource])
    start: str = ""
    """The name of the run or store that the page opens; empty: the list."""
    only: str = ""
    """The one run of the folder that is shown; empty: all."""
    closing: bool = False
    """Whether the server stops, so that no stream holds it up."""
    _sources: dict[str, Source] = field(default_factory=dict[str, Source], init=False)

    def runs(self) -> dict[str, RunFolder]:
        """The runs and those of benchmarks, newest first."""
        if self.folder is None:
            return {}
        root = self.folder.resolve()
        if self.only:
            return {self.only: RunFolder(root / self.only)}
        folders = reversed(RunFolder.below(root))
        return {str(run.path.relative_to(root)): run for run in folders if run.path.is_relative_to(root)}

    def run(self, name: str) -> RunFolder:
        """One run. Its name is looked up, so no name leads out of the folder."""
        run = self.runs().get(name)
        if run is None:
            raise UnknownRun(f"There is no run {name!r}. The list of runs shows the names.")
        return run

    async def source(self, name: str) -> Source:
        """The records of a run or a store."""
        source = self._sources.get(name)
        if source is None:
            records = self.stores[name] if name in self.stores else await asyncio.to_thread(run_records, self.run(name))
            source = self._sources.setdefault(name, Source(name, records))
        return source

    def adopt(self, name: str, store: LightningStore) -> None:
        """Use an open store, which its owner closes."""
        self._sources[name] = Source(name, self.stores[name], store)

    def name_of(self, path: Path) -> str | None:
        """The name of the run in a folder; None: it is not in this library."""
        return next((name for name, run in self.runs().items() if run.path == path.resolve()), None)

    async def close(self) -> None:
        for source in self._sources.values():
            await source.close()


def find_library(name: str | None) -> Library:
    """Return the library for the argument of `agl view`: a run, a folder of runs, a store, or nothing (./runs and ./agl.db)."""
    if name is None:
        return Library(Path("runs"), _default_stores())
    if name != "latest" and _is_folder_of_runs(Path(name)):
        return Library(Path(name))
    if is_store_address(name) or Path(name).is_file() or name.endswith(".db"):
        records = find_records(name)
        label = shown_address(name)
        return Library(None, {label: records}, start=label)
    run = RunFolder.latest() if name == "latest" else RunFolder.open(name)
    library = Library(_root(run.path))
    return Library(library.folder, start=library.name_of(run.path) or run.name)


def _default_stores() -> dict[str, RecordsSource]:
    address = os.environ.get("AGL_STORE") or ("agl.db" if Path("agl.db").is_file() else None)
    return {} if address is None else {shown_address(address): find_records(address)}


def _is_folder_of_runs(path: Path) -> bool:
    if not path.is_dir() or any((path / name).exists() for name in ("config.toml", "store.db", "state.json")):
        return False
    if not Library(path).runs():
        raise ConfigError(f"{path} has no runs. Name a run, a folder of runs, or a store file.")
    return True


def _root(run: Path) -> Path:
    """The folder of runs that a run lies in: ./runs if it is below, also for the run of a benchmark."""
    runs = Path("runs").resolve()
    return runs if run.is_relative_to(runs) else run.parent
