"""A PostgreSQL server of one's own in a temporary folder, for tests, benchmarks and `agl doctor`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

PASSWORD = "s3cret/of:the@server"  # noqa: S105  # a server that only this machine reaches, and that ends with its test
USER = "agl"
MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of random name is made there


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs: on PATH, or where Debian puts them."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def _account() -> dict[str, Any]:
    """Whom the server runs as, because it refuses to run as root."""
    if os.getuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {}


class Server:
    """A server on a loopback port. `kill` ends it as a crash does."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs, self._data = folder, programs, folder / "data"
        self._process: subprocess.Popen[Any] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def address(self, schema: str = "agentlightning") -> str:
        """The address of a store on this server, without the password that TCP asks for."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres?schema={schema}"

    def local(self, schema: str = "agentlightning") -> str:
        """The address of the same store over the Unix socket, which asks for no password."""
        return f"postgresql://{USER}@/postgres?host={self._folder}&port={self.port}&schema={schema}"

    def create(self) -> None:
        """Make the server's files."""
        passwords = self._folder / "password"
        passwords.write_text(PASSWORD)
        if account := _account():
            for path in (self._folder, passwords):
                os.chown(path, account["user"], account["group"])
        self._run(
            "initdb", "--pgdata", self._data, "--username", USER, "--pwfile", passwords, "--auth-local", "trust", "--auth-host",
            "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(self._programs / name), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **_account())  # noqa: S603

    def start(self) -> None:
        """Start the server, and return once it answers."""
        deadline = time.monotonic() + 60
        while True:
            with (self._folder / "log").open("ab") as log:
                command = [
                    self._programs / "postgres", "-D", self._data, "-p", str(self.port), "-k", self._folder, "-c",
                    "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB", "-c", "max_connections=200", "-c", "max_wal_size=128MB",
                ]  # fmt: skip
                self._process = process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **_account())  # noqa: S603
            while process.poll() is None:
                try:
                    psycopg.connect(self.local().partition("&schema=")[0]).close()
                    return
                except psycopg.OperationalError:
                    time.sleep(0.05)
            if time.monotonic() > deadline:  # else the processes of a killed server have not ended
                raise RuntimeError(f"PostgreSQL does not start. Read {self._folder / 'log'}.")
            time.sleep(0.1)

    def cpu(self) -> float:
        """Seconds of CPU time of the server and all its sessions so far. (Linux)"""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ticks = sum(map(int, _times(pid)))  # with those of ended sessions
        for child in children:
            with suppress(OSError):
                ticks += sum(map(int, _times(int(child))[:2]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """kill -9: the server ends without writing anything, as when the machine fails."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # at once, because the files are deleted
            self._process.wait()


def _has_room() -> bool:
    return MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**31


def _times(pid: int) -> list[str]:
    """utime, stime, cutime and cstime of a process, in clock ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]


@contextmanager
def temporary_server(*, in_memory: bool = False) -> Generator[Server]:
    """Run a server for the block, with its files in memory if there is room. A killed server loses nothing there, as on a disk.

    Raises `FileNotFoundError` where PostgreSQL is not installed.
    """
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed here. Run: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="agl-pg-", dir=MEMORY if in_memory and _has_room() else None))
    server = Server(folder, programs)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
