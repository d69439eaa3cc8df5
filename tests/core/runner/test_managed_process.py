"""The one managed process, with real programs: it is watched from any loop, its end is told in words, and it leaves nobody behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlightning.runner.managed_process import Command, Guard, ManagedProcess, describe_exit
from agentlightning.runner.process_output import LogFile, Pipes
from agentlightning.runner.short_process import ask_python, run_with_progress


def shell(script: str, folder: Path) -> Command:
    return Command(arguments=["sh", "-c", script], environment=dict(os.environ), folder=folder)


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def test_a_server_is_ready_or_the_log_says_how_it_ended(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "server.log")

    async def ready() -> bool:
        return (tmp_path / "ready").exists()

    server = ManagedProcess(shell("echo starting; touch ready; exec sleep 1000", tmp_path), log)
    assert await server.wait_until(ready, timeout=30, interval=0.02)
    assert (server.code, server.how, log.tail()) == (None, "is running", "starting")
    await server.stop()
    assert server.how == "was ended by SIGTERM"
    (tmp_path / "ready").unlink()
    broken = ManagedProcess(shell("echo no such model >&2; exit 3", tmp_path), log)
    assert not await broken.wait_until(ready, timeout=30, interval=0.02)
    assert broken.how == "exited with code 3"
    await broken.stop()
    assert log.tail() == "starting\nno such model"


async def test_a_server_that_is_never_ready_is_given_up_at_its_timeout(tmp_path: Path) -> None:
    async def ready() -> bool:
        return False

    server = ManagedProcess(shell("exec sleep 1000", tmp_path), LogFile(tmp_path / "log"))
    began = time.monotonic()
    assert not await server.wait_until(ready, timeout=0.3, interval=0.02)
    assert time.monotonic() - began < 5
    assert server.code is None
    await server.stop()


async def test_stopping_kills_a_program_that_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo $! > child; echo $$ > parent; while :; do sleep 0.05; done"
    process = ManagedProcess(shell(script, tmp_path), Pipes())
    while not (tmp_path / "parent").exists() or not (tmp_path / "parent").read_text():
        await asyncio.sleep(0.02)
    await process.stop(grace=0.2)
    assert process.how == "was ended by SIGKILL"
    for _ in range(100):
        if not is_alive(int((tmp_path / "child").read_text())):
            break
        await asyncio.sleep(0.05)
    assert not is_alive(int((tmp_path / "child").read_text()))


def test_a_process_belongs_to_no_event_loop(tmp_path: Path) -> None:
    process = ManagedProcess(shell("exec sleep 1000", tmp_path), LogFile(tmp_path / "log"))  # outside any loop, as in a constructor

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.1)

    asyncio.run(give_up())
    asyncio.run(process.stop())  # another loop, after the first one's wait was cancelled
    assert process.how == "was ended by SIGTERM"


async def test_a_program_that_cannot_start_is_an_os_error_and_the_guard_goes_on(tmp_path: Path) -> None:
    guard = Guard()
    with pytest.raises(FileNotFoundError):
        ManagedProcess(Command(arguments=["no-such-program"], environment={}), Pipes(), guard)
    output = Pipes()
    process = ManagedProcess(shell("echo out; echo err >&2", tmp_path), output, guard)
    assert await process.wait() == 0
    await process.stop()
    guard.close()
    assert output.tail() == "stderr ends:\nerr\nstdout ends:\nout"


def test_an_exit_code_is_told_in_words() -> None:
    assert [describe_exit(code) for code in (0, 7, -9, -99)] == [
        "exited with code 0",
        "exited with code 7",
        "was ended by SIGKILL",
        "was ended by signal 99",
    ]


def test_a_short_process_passes_on_its_lines_and_returns_why_it_failed() -> None:
    lines: list[str] = []
    assert run_with_progress(["sh", "-c", "echo one; echo; echo two >&2"], lines.append) is None
    assert lines == ["one", "two"]
    assert run_with_progress(["sh", "-c", "echo ERROR: no wheel; echo a hint; exit 1"], lines.append) == "ERROR: no wheel"
    assert run_with_progress(["sh", "-c", "echo a; echo b; echo c; echo d; exit 1"], lines.append) == "b c d"
    assert run_with_progress(["false"], lines.append) == "it wrote nothing"


def test_another_python_answers_or_says_why_not() -> None:
    assert ask_python(sys.executable, "print('a warning'); print('[1, 2]')") == [1, 2]
    with pytest.raises(ValueError, match="ModuleNotFoundError: No module named 'nobody'"):
        ask_python(sys.executable, "import nobody")
    with pytest.raises(ValueError, match=r"no answer within 0\.2 s"):
        ask_python(sys.executable, "import time; time.sleep(60)", timeout=0.2)
    with pytest.raises(OSError, match="no-such-python"):
        ask_python("/no-such-python", "")
