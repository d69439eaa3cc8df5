"""`agl train` with runners of its own processes: the trainer, a runner, PostgreSQL, the disk and the clock fail, and training goes on."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_account import account
from fault_house import House, Process, free_port, wait_until

from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning_postgres.testing import binaries, temporary_server

pytestmark = pytest.mark.slow
Report = Callable[[dict[str, object]], None]
LEASE = 2.0


class Training:
    """A run, which is resumed until it ends. Without other settings it has remote runners."""

    REMOTE = f"remote = true\nconcurrency = 4\nlease = {LEASE}\n"

    def __init__(
        self, house: House, model: str, *, steps: int, agent: str = 'agent = "fault_agent:solve"', runner: str = REMOTE, store: str = ""
    ) -> None:
        self.house, self.steps, self.port = house, steps, free_port()
        self.runs = house.folder / "runs"
        (house.folder / "tasks.jsonl").write_text("".join(f'{{"id": "{n}", "text": "{n} ab"}}\n' for n in range(4)))
        (house.folder / "config.toml").write_text(
            f'{agent}\ntasks = "tasks.jsonl"\nmodel = "{model}"\nsteps = {steps}\ntasks_per_step = 2\nname = "tiny"\n'
            f"port = {self.port}\n" + (f'store = "{store}"\n' if store else "") + f"[runner]\n{runner}"
            '[algorithm]\nname = "lightning"\ngroup_size = 4\n[trainer]\nname = "torch"\nlr = 1e-3\n[checkpoints]\nevery = 1\n'
        )
        self.trainer: Process | None = None

    def start(self, **environment: str) -> Process:
        """Begin, or resume."""
        words = ["--resume", "latest"] if self.begun else ["config.toml"]
        self.trainer = self.house.agl("train", *words, **environment)
        return self.trainer

    def runner(self) -> Process:
        return self.house.runner(f"http://secret@127.0.0.1:{self.port}")

    @property
    def begun(self) -> bool:
        return any(self.runs.glob("*/state.json"))

    @property
    def folder(self) -> RunFolder:
        return RunFolder.all(self.runs)[-1]

    @property
    def done(self) -> int:
        """Steps with metrics."""
        metrics = list(self.runs.glob("*/metrics.jsonl"))
        return max((row["step"] for row in read_metrics(metrics[-1].parent)), default=0) if metrics else 0

    def wait_for_answers(self, more: int = 1, *, after_step: int = 0) -> None:
        """Wait until the run has done `after_step` steps, then until agents got that many answers more. A test that hits each step once
        or twice costs a rollout one or two of its three attempts."""
        wait_until(lambda: self.done >= after_step or self.ended, f"end of step {after_step}", 150)
        goal = len(self.house.acknowledged()) + more
        try:
            wait_until(lambda: len(self.house.acknowledged()) >= goal or self.ended, "progress", 150)
        except AssertionError as late:
            raise AssertionError("\n".join([str(late), *(process.account for process in self.house.started)])) from None

    @property
    def ended(self) -> bool:
        return self.trainer is not None and self.trainer.code is not None

    def finish(self, fault: str, times: int, *, failed: int = 0) -> dict[str, object]:
        """Wait for the end of the run, and compare. `failed` rollouts cannot succeed."""
        assert self.trainer is not None
        assert self.trainer.wait() == 0, self.trainer.output
        assert self.done == self.steps
        rows = read_metrics(self.folder.path)
        assert [row["step"] for row in rows] == list(range(1, self.steps + 1))
        assert sum(row["unscored"] for row in rows) == failed, rows
        for process in self.house.started:
            process.kill()
        training = f"{self.done} of {self.steps} steps, {failed or 'no'} rollouts failed"
        return account(fault, times, self.folder.store_address, self.house.acknowledged(), training=training, lease=LEASE)


def test_runners_that_are_killed_cost_no_rollout_of_the_run(house: House, model: str, full: bool, report: Report) -> None:
    kills = 8 if full else 2
    training = Training(house, model, steps=4 if full else 2)
    training.start().wait_for("Waiting for runners")
    runners = [training.runner() for _ in range(3)]
    for kill in range(kills):
        training.wait_for_answers(4, after_step=kill // 2)
        assert not training.ended, "the run ended before the fault"
        runners[kill % 3].kill()
        runners[kill % 3] = training.runner()
    report(training.finish("kill -9 of a runner", kills))


def test_a_trainer_that_is_killed_and_resumed_costs_no_record(house: House, model: str, full: bool, report: Report) -> None:
    kills = 4 if full else 1
    training = Training(house, model, steps=5 if full else 2)
    training.start()
    for _ in range(2):
        training.runner()
    for kill in range(kills):
        training.wait_for_answers(10, after_step=kill)
        assert not training.ended, "the run ended before the fault"
        training.trainer.kill()  # type: ignore[union-attr]  # it is started
        training.start()
    report(training.finish("kill -9 of the trainer and its gateway", kills))


def test_a_killed_postgresql_costs_no_record_and_the_run_goes_on(house: House, model: str, full: bool, report: Report) -> None:
    if binaries() is None:
        pytest.skip("This test needs PostgreSQL. Run: apt-get install -y postgresql")
    kills = 5 if full else 1
    with temporary_server(in_memory=True) as server:
        training = Training(house, model, steps=4 if full else 2, store=server.local().replace("&schema=agentlightning", ""))
        training.start()
        for _ in range(2):
            training.runner()
        for kill in range(kills):
            training.wait_for_answers(8, after_step=kill // 2)
            assert not training.ended, training.trainer.output  # type: ignore[union-attr]
            server.kill()
            time.sleep(float(kill % 3))
            server.start()
        report(training.finish("kill -9 of PostgreSQL", kills))


def test_a_task_that_kills_its_worker_fails_and_the_run_goes_on(house: House, model: str, full: bool, report: Report) -> None:
    steps = 3 if full else 2
    runner = "workers = 2\nconcurrency = 4\nlease = 2.0\n"
    training = Training(house, model, steps=steps, agent='agent = "fault_agent:poisoned"', runner=runner)
    output = training.start()
    output.wait()
    deaths = output.output.count("died with exit code -9")
    assert deaths >= 3 * steps, "each step has one such rollout, with three attempts"
    report(training.finish("a task that kills its worker", deaths, failed=steps))


def test_a_program_that_forks_and_hangs_ends_with_its_children(house: House, model: str, full: bool, report: Report) -> None:
    hangs = 8 if full else 2
    agent = f'command = "{sys.executable} fault_agent.py"\nreward = "post"'
    training = Training(house, model, steps=2 if full else 1, agent=agent, runner="concurrency = 4\ntimeout = 12\n")
    training.start(HANGS=str(hangs)).wait()
    pids = (house.folder / "pids").read_text().split()
    assert len(pids) == 2 * hangs
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    report(training.finish("a rollout that forks and hangs", hangs))


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size in memory."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"This test mounts a small disk, which needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def test_a_full_disk_costs_no_record_and_the_run_resumes(house: House, model: str, full: bool, report: Report) -> None:
    times = 3 if full else 1
    with small_disk(house.folder / "runs", 256):
        training = Training(house, model, steps=4 if full else 2)
        training.start()
        for _ in range(2):
            training.runner()
        for number in range(times):
            training.wait_for_answers(10, after_step=number)
            ballast = fill(training.runs)
            assert training.trainer is not None
            assert training.trainer.wait() == 1, training.trainer.output
            assert "full" in training.trainer.output
            ballast.unlink()
            training.start()
        report(training.finish("a full disk", times))


class Clock:
    """The wall clock of a process, which jumps when the test says so. Its monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        source, library, self._file = Path(__file__).with_name("jumping_clock.c"), folder / "clock.so", folder / "clock"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._file)}

    def jump(self, offset: int) -> None:
        """Set the clock to the real time and `offset` seconds."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("l", offset))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="This test needs Linux and a C compiler, cc.")
def test_a_clock_that_jumps_costs_no_record_and_no_rollout(house: House, model: str, full: bool, report: Report) -> None:
    clock = Clock(house.folder)
    hour, day = 3600, 86400
    jumps = [hour, -2 * hour, 3 * day, -day, 0, -90, 90, 0] if full else [hour, -hour]
    training = Training(house, model, steps=8 if full else 2)
    training.start(**clock.environment)
    runners = [training.runner() for _ in range(2)]
    for number, jump in enumerate(jumps):
        training.wait_for_answers(8, after_step=number)
        assert not training.ended, training.trainer.output  # type: ignore[union-attr]
        clock.jump(jump)
        runners[number % 2].kill()  # its leases end by a clock that jumped
        runners[number % 2] = training.runner()
    report(training.finish("a clock that jumps", len(jumps)))
