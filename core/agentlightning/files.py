"""Writing files that are complete or absent, errors of the disk in plain words, and the header of a safetensors file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentlightning.errors import RunError


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or the old one, even after a power cut. Raises `RunError` if the disk refuses."""
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    with disk_errors("write", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            flush(path.parent)
        finally:
            part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(action: str, path: Path) -> Generator[None]:
    """Turn an `OSError` into a `RunError` that names the action, the path, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot {action} {path}: {_cause(error, path)}.") from error


def _cause(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(existing).free / 2**20
        return f"the disk is full ({free:.0f} MiB free). Free some space, then run `agl train CONFIG.toml --resume RUN`"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied. Make the folder writable for your user, or choose another folder for the run"
    if error.errno == errno.EROFS:
        return "the file system is read-only. Choose another folder for the run"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file is in the way of a folder. Move the file, or choose another folder for the run"
    if error.errno == errno.ENOENT:
        return "it does not exist, and neither may a folder above it. Check the name, or choose another folder"
    return error.strerror or str(error)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def safetensors_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Return (where the data starts, `{dtype, shape, data_offsets}` by the name of a tensor) of a safetensors file. Raises `ValueError` for
    a file that is cut off or has another format."""
    size = file.stat().st_size
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        header: Any = json.loads(data.read(min(length, size)))
    try:
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} has no header of safetensors") from error
    if size < 8 + length + end:
        raise ValueError(f"{file} is cut off")
    return 8 + length, tensors
