"""Cuts folders into small files that travel separately, and reassembles them.

A parcel is a folder. It becomes one tar stream, cut into pieces. `index.json` lists every piece with its size and checksum. A parcel is
unpacked only after all of its pieces arrive intact.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PIECE_BYTES = 55 * 2**20
INDEX = "index.json"
COMPLETE = ".complete"
"""File in an unpacked parcel with the checksum of its pieces. Written last."""


class PiecesError(Exception):
    """The pieces cannot be used."""


@dataclass(frozen=True)
class Piece:
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Contents of a folder of pieces."""

    commit: str | None
    machine: dict[str, Any]
    """The machine that the pieces were packed for."""
    parcels: dict[str, tuple[Piece, ...]]
    """Parcels in upload order."""

    def missing(self, parcel: str, folder: Path) -> list[str]:
        """Return the missing or damaged pieces of a parcel, each with a reason."""
        if parcel not in self.parcels:
            return [f"all of parcel {parcel}, which was not packed"]
        return [reason for piece in self.parcels[parcel] if (reason := _damage(piece, folder)) is not None]


def cut(parcels: Mapping[str, Path], folder: Path, *, commit: str | None, machine: dict[str, Any], piece_bytes: int = PIECE_BYTES) -> Index:
    """Cut each parcel's folder into pieces in `folder`. Write the index last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    pieces = {name: tuple(_cut(name, source, folder, piece_bytes)) for name, source in parcels.items()}
    index = Index(commit, machine, pieces)
    (folder / INDEX).write_text(json.dumps({"schema": 1, **asdict(index)}, indent=1) + "\n", encoding="utf-8")
    return index


def read_index(folder: Path) -> Index:
    """Read the index of a folder that `cut` created. Raises `PiecesError` if it is missing or unreadable."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != 1:
            raise PiecesError(f"{path} has schema {content['schema']}; this version reads schema 1. Pack again.")
        parcels = {name: tuple(map(_piece, rows)) for name, rows in content["parcels"].items()}
        return Index(content["commit"], dict(content["machine"]), parcels)
    except FileNotFoundError:
        raise PiecesError(f"{folder} has no {INDEX}. Give the folder that benchmarks/gpu/pack filled; its {INDEX} travels first.") from None
    except NotADirectoryError:
        raise PiecesError(f"{folder} is not a folder. Give the folder that benchmarks/gpu/pack filled.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PiecesError(f"{path} cannot be read ({type(error).__name__}: {error}). Copy it again, or pack again.") from error


def _piece(row: dict[str, Any]) -> Piece:
    return Piece(str(row["file"]), int(row["bytes"]), str(row["sha256"]))


def assemble(index: Index, parcel: str, folder: Path, target: Path) -> list[str]:
    """Unpack a parcel into `target`, once. Return its missing pieces, or an empty list if the parcel is complete."""
    checksum = hashlib.sha256("".join(piece.sha256 for piece in index.parcels.get(parcel, ())).encode()).hexdigest()
    mark = target / COMPLETE
    if parcel in index.parcels and mark.is_file() and mark.read_text() == checksum:
        return []
    if missing := index.missing(parcel, folder):
        return missing
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    stream = io.BufferedReader(_Joined([folder / piece.file for piece in index.parcels[parcel]]))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise PiecesError(f"parcel {parcel} cannot be unpacked ({error}). Pack again.") from error
    mark.write_text(checksum)
    return []


def _damage(piece: Piece, folder: Path) -> str | None:
    path = folder / piece.file
    if not path.is_file():
        return piece.file
    if path.stat().st_size != piece.bytes:
        return f"{piece.file} (damaged: {path.stat().st_size:,} bytes of {piece.bytes:,})"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != piece.sha256:
            return f"{piece.file} (damaged: wrong checksum)"
    return None


def _cut(name: str, source: Path, folder: Path, piece_bytes: int) -> Iterator[Piece]:
    for old in folder.glob(f"{name}-[0-9][0-9][0-9]"):
        old.unlink()
    with _Pieces(name, folder, piece_bytes) as writer:
        with tarfile.open(fileobj=writer, mode="w|") as archive:  # type: ignore[call-overload]
            for path in sorted(source.rglob("*")):
                archive.add(path, path.relative_to(source).as_posix(), recursive=False, filter=_plain)
    yield from writer.pieces


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


class _Pieces(io.RawIOBase):
    """A stream that writes files of `piece_bytes` each."""

    def __init__(self, name: str, folder: Path, piece_bytes: int) -> None:
        self.name, self.folder, self.piece_bytes = name, folder, piece_bytes
        self.pieces: list[Piece] = []
        self._buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        while len(self._buffer) >= self.piece_bytes:
            self._put(self.piece_bytes)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._buffer:
            self._put(len(self._buffer))
        super().close()

    def _put(self, count: int) -> None:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        file = f"{self.name}-{len(self.pieces) + 1:03}"
        (self.folder / file).write_bytes(data)
        self.pieces.append(Piece(file, len(data), hashlib.sha256(data).hexdigest()))


class _Joined(io.RawIOBase):
    """Read the files of a parcel as one stream."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                path = next(self._paths, None)
                if path is None:
                    return 0
                self._file = path.open("rb")
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = None
