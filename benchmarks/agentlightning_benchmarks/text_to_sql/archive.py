"""Unpacks databases from a zip into the cache folder, once.

A member must be named `<top>/<database>/<name>.sqlite`. Its path is built from these parts only, so its name never decides where a file is
written. Unpacking is atomic.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
import zlib
from pathlib import Path

from agentlightning.config.models import cache_folder
from agentlightning.errors import ConfigError
from agentlightning.types import new_id

MEMBER = re.compile(r"(?P<top>\w+)/(?P<database>\w[\w-]*)/(?P<file>\w[\w.-]*\.sqlite)", re.ASCII)
HEADER = b"SQLite format 3\0"
LARGEST = 2**31
"""Maximum size of a database in bytes."""
SYMLINK = 0o120000


def unpack(path: Path, top: str) -> Path:
    """Return the folder with `<database>/<name>.sqlite` from a zip whose members start with `top`. Raises a `ConfigError` that names the
    zip."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{path}: the databases cannot be read: {error.strerror or error}. Expected a zip of SQLite files.") from error
    folder = cache_folder() / "text_to_sql" / f"{path.stem}-{digest}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.{new_id()}")
    try:
        part.mkdir(parents=True)
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if not members:
                raise ConfigError(f"{path}: the zip is empty. Expected {top}/<database>/<name>.sqlite.")
            for member in members:
                _unpack(archive, member, part, path, top)
        if not folder.exists():
            part.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: the zip is broken: {error}. Expected a zip of SQLite files.") from error
    except OSError as error:
        if not folder.is_dir():  # another process may have finished first
            raise ConfigError(
                f"{path}: the databases cannot be unpacked into {folder}: {error.strerror or error}. Check its disk space and permissions."
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path, top: str) -> None:
    name = MEMBER.fullmatch(member.filename)
    if name is None or name["top"] != top or (member.external_attr >> 16) & 0o170000 == SYMLINK:
        raise ConfigError(f"{path}: the zip holds {member.filename!r}. Expected only files {top}/<database>/<name>.sqlite.")
    if member.file_size > LARGEST:
        raise ConfigError(f"{path}: {member.filename} would have {member.file_size} bytes. Expected at most {LARGEST}.")
    target = folder / name["database"] / name["file"]
    target.parent.mkdir(exist_ok=True)
    with archive.open(member) as source, target.open("xb") as file:  # zipfile reads at most `file_size` bytes and checks the CRC
        head = source.read(len(HEADER))
        if head != HEADER:
            raise ConfigError(f"{path}: {member.filename} is not an SQLite database. Expected a file that starts with 'SQLite format 3'.")
        file.write(head)
        shutil.copyfileobj(source, file)
