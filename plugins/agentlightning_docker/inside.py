"""The first process of a container, started as a script. The agent is its child; its end is the end of every process in the container.

It leads `127.0.0.1:PORT` to the gateway's socket, which is the only way out. It ends with the agent, after the time limit, and when
`watch.sock` closes: then the runner on the other side is gone. That socket takes the agent's end as a line of JSON.

It imports the standard library only and runs on Python 3.8.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

FOLDER = "/agl"
"""Where the container sees the rollout's folder."""
HOST, PORT = "127.0.0.1", 17641
"""The gateway's address inside."""
OOM_COUNTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Files with the number of processes that the memory limit ended: of cgroup 2 and 1."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")


async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Copy the bytes between two connections until both directions ended, or one failed."""
    pumps = [asyncio.ensure_future(_pump(reader, up[1])), asyncio.ensure_future(_pump(up[0], writer))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, up[1]):
            end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        data = await reader.read(65536)
        if not data:
            break
        writer.write(data)
        await writer.drain()
    with suppress(OSError):  # the other side is gone already
        writer.write_eof()


async def _to_gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        up = await asyncio.open_unix_connection(f"{FOLDER}/gateway.sock")
    except OSError:
        writer.close()
        return
    await join(reader, writer, up)


def _environment(own: dict[str, str]) -> dict[str, str]:
    """The image's variables and the rollout's, without proxies: none could be reached."""
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    return {**inherited, "NO_PROXY": "*", "no_proxy": "*", **own}


def _start(order: dict[str, Any]) -> int:
    """Start the agent. Returns its process id. Its processes are ended before this one where memory is short."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    stdin = (os.POSIX_SPAWN_OPEN, 0, f"{FOLDER}/task.json", os.O_RDONLY, 0)
    arguments = order["arguments"]
    pid = os.posix_spawnp(arguments[0], arguments, _environment(order["environment"]), file_actions=[stdin])
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    return pid


def _close_memory() -> None:
    """Forbid the agent to read and change this process."""
    with suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _killed_by_memory() -> int:
    for name in OOM_COUNTS:
        with suppress(OSError), open(name) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


async def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Run the agent to its end. Returns its exit code, and whether the memory limit ended a process."""
    try:
        pid = _start(order)
    except OSError as error:
        return {"error": f"the program {order['arguments'][0]!r} cannot be started in the image: {error.strerror}"}
    _close_memory()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def reap() -> None:
        """Collect ended children, also those that others left behind: they count as processes."""
        with suppress(ChildProcessError):
            child, status = os.waitpid(-1, os.WNOHANG)
            while child:
                if child == pid:
                    ended.set_result(os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status))
                child, status = os.waitpid(-1, os.WNOHANG)

    loop.add_signal_handler(signal.SIGCHLD, reap)
    reap()  # it may have ended before
    return {"code": await ended, "memory": _killed_by_memory() > 0}


async def main(order: dict[str, Any]) -> None:
    """Serve the container's only address, run the agent, and tell how it ended."""
    reader, writer = await asyncio.open_unix_connection(f"{FOLDER}/watch.sock")
    await asyncio.start_server(_to_gateway, HOST, PORT)
    run, watch = asyncio.ensure_future(_run(order)), asyncio.ensure_future(reader.read())
    await asyncio.wait([run, watch], timeout=order["limit"], return_when=asyncio.FIRST_COMPLETED)
    if run.done():
        writer.write(json.dumps(run.result()).encode() + b"\n")
        await writer.drain()
        await asyncio.wait([watch], timeout=5)  # until it was read
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    with open(f"{FOLDER}/order.json") as file:
        asyncio.run(main(json.load(file)))
