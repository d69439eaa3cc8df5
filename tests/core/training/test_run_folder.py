from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.errors import RunError
from agentlightning.files import disk_errors, write_file
from agentlightning.training.choice import Evaluation, choose, differences
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.run_folder import RunFolder, kept_steps
from agentlightning.training.run_state import Learned, RunState
from agentlightning.training.step_logprobs import StepLogprobs, read_step_logprobs, write_step_logprobs


def make(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "demo")


def save(folder: RunFolder, step: int, text: str = "weights") -> None:
    with folder.new_checkpoint(RunState(step=step)) as part:
        (part / "model.safetensors").write_text(text)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path, "a name/with: signs") for _ in range(5)]
    assert len({folder.path for folder in folders}) == 5
    assert all(folder.path.parent == tmp_path.resolve() for folder in folders)
    assert RunFolder.all(tmp_path) == sorted(folders, key=lambda folder: folder.name)


def test_a_new_folder_of_runs_ignores_its_files_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    assert (make(tmp_path).path.parent / ".gitignore").read_text() == "*\n"
    RunFolder.create(tmp_path, "demo")
    assert not (tmp_path / ".gitignore").exists()


def test_the_latest_run_is_the_newest_that_has_begun_to_record(tmp_path: Path) -> None:
    for name in ("20261122-133000-b", "20261122-133001-a", "20261122-133002-failed", "notes"):
        (tmp_path / name).mkdir()
        if "failed" not in name:
            (tmp_path / name / "config.toml").write_text("")
    assert RunFolder.latest(tmp_path).name == "20261122-133001-a"


def test_a_failure_keeps_its_first_line_without_secrets(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.write_failure(ValueError("no postgresql://me:hunter2@db/x\nmore"))
    reason = folder.failed()
    assert reason is not None
    assert reason.startswith("ValueError: no postgresql://")
    assert "hunter2" not in reason
    assert "more" not in reason


def test_a_renamed_run_keeps_its_place_among_the_others(tmp_path: Path) -> None:
    names = ["20260101-120000-first", "20260102-120000-second", "20260103-120000-third"]
    for day, name in enumerate(names, 1):
        (tmp_path / name).mkdir()
        config = tmp_path / name / "config.toml"
        (tmp_path / name / "store.db").touch()
        config.touch()
        os.utime(config, (began := time.mktime((2026, 1, day, 12, 0, 0, 0, 0, -1)), began))
    (tmp_path / names[1]).rename(tmp_path / "a good one")
    assert [run.name for run in RunFolder.all(tmp_path)] == [names[0], "a good one", names[2]]
    assert RunFolder.below(tmp_path) == RunFolder.all(tmp_path)
    (tmp_path / names[2]).rename(tmp_path / "Best")
    assert RunFolder.latest(tmp_path).name == "Best"


def test_no_run_at_all_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="agl demo"):
        RunFolder.latest(tmp_path / "runs")


def test_opening_a_run_that_is_not_there_names_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path)
    folder.write_config("")
    assert RunFolder.open(folder.name) == RunFolder.open(folder.path) == folder
    with pytest.raises(RunError, match=folder.name):
        RunFolder.open("20200101-000000-demo")
    (tmp_path / "holiday").mkdir()
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open("holiday")


def test_state_and_batches_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = make(tmp_path)
    first, strongest = (Evaluation(step=step, rewards={"greedy": {"a": step / 3, "b": 0.1}}) for step in (0, 2))
    choice = choose(None, None, differences(first, strongest), strongest)
    diagnosis = Diagnosis(cause="truncated", evidence="e", remedy="r")
    state = RunState(
        step=3,
        first=first,
        strongest=strongest,
        sampler={"epoch": 1, "order": [2, 0]},
        best=0.5,
        choice=choice,
        diagnosis=diagnosis,
        started=1.5,
        seconds=9.25,
    )
    folder.write_state(state)
    assert folder.read_state() == state
    learned = {"a": Learned(returns=(1.0, None), advantages=(0.1 + 0.2, None), trained=7, excluded={"no signal": 2})}
    folder.write_batch(1, learned)
    folder.write_batch(2, {"b": Learned(trained=1)})
    assert folder.read_batch(1) == learned
    assert set(folder.read_batches()) == {"a", "b"}
    assert folder.read_batch(9) == {}


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.state.write_text('{"step": "three"}')
    with pytest.raises(RunError, match=r"state\.json"):
        folder.read_state()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"disk is full .*MiB free.*--resume"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.EDQUOT, "disk is full"), (errno.EIO, "Input/output")],
)
def test_what_the_disk_refuses_names_cause_and_way_out(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(RunError, match=says), disk_errors("write", tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_a_file_in_the_place_of_the_runs_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="a file is in the way of a folder"):
        RunFolder.create(tmp_path / "runs", "demo")


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = make(tmp_path)
    save(folder, 1)
    with suppress(ZeroDivisionError), folder.new_checkpoint(RunState(step=2)) as part:
        (part / "model.safetensors").write_text("half")
        raise ZeroDivisionError
    assert folder.steps() == [1]
    assert os.listdir(folder.checkpoints) == ["step-00001"]
    assert folder.read_state().step == 1


def test_what_a_killed_trainer_left_beside_its_checkpoint_is_removed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    code = (
        "import os, sys, pathlib\n"
        "from agentlightning.training.run_folder import RunFolder, RunState\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).new_checkpoint(RunState(step=2)) as checkpoint:\n"
        "    checkpoint.with_name(f'.{checkpoint.name}.half').mkdir()\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False).returncode == -signal.SIGKILL
    assert os.listdir(folder.checkpoints)
    with folder.lock():
        assert os.listdir(folder.checkpoints) == []


def test_a_run_resumes_from_its_newest_checkpoint_with_that_checkpoints_state(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with pytest.raises(RunError, match="no complete checkpoint"):
        folder.resume_point()
    save(folder, 9)
    save(folder, 10)
    folder.write_state(RunState(step=12))  # two more steps were finished, and not kept
    (folder.checkpoints / "step-00011").mkdir()  # foreign, without a state
    path, state = folder.resume_point()
    assert (path, state.step) == (folder.checkpoint(10), 10)


def test_writing_a_checkpoint_again_replaces_it(tmp_path: Path) -> None:
    folder = make(tmp_path)
    save(folder, 1, "old")
    save(folder, 1, "new")
    assert (folder.checkpoint(1) / "model.safetensors").read_text() == "new"


def test_cutting_back_removes_what_will_be_made_again(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for step in (1, 2, 3):
        save(folder, step)
        folder.write_batch(step, {})
        write_step_logprobs(folder.logprobs(step), StepLogprobs(step, {}))
    write_step_logprobs(folder.logprobs(4), StepLogprobs(4, {}))  # the run was killed before it wrote the rest of the step
    folder.cut_back(2)
    assert folder.steps() == [1, 2]
    assert sorted(os.listdir(folder.batches)) == [f"step-0000{step}.{kind}" for step in (1, 2) for kind in ("json", "npz")]


def test_log_probabilities_of_a_step_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert read_step_logprobs(folder.logprobs(1)) is None
    written = {"a": np.float32([-0.25, -1.5]), "b": np.float32([]), "c": np.float32([-3.0])}
    write_step_logprobs(folder.logprobs(1), StepLogprobs(7, written))
    read = read_step_logprobs(folder.logprobs(1))
    assert read is not None
    assert read.version == 7
    assert {name: values.tolist() for name, values in read.by_completion.items()} == {"a": [-0.25, -1.5], "b": [], "c": [-3.0]}
    assert folder.read_batches() == {}
    folder.logprobs(1).write_bytes(b"PK torn")
    with pytest.raises(RunError, match=r"step-00001\.npz is damaged"):
        read_step_logprobs(folder.logprobs(1))


@given(st.sets(st.integers(1, 200), max_size=30), st.integers(1, 200), st.none() | st.integers(1, 20), st.integers(1, 4))
def test_the_last_the_best_and_every_nth_checkpoint_stay(steps: set[int], best: int, every: int | None, last: int) -> None:
    stay = kept_steps(sorted(steps), best=best, every=every, last=last)
    assert stay <= steps
    for step in steps:
        newer = sum(other > step for other in steps)
        assert (step in stay) == (newer < last or step == best or (every is not None and step % every == 0))


def test_pruning_removes_the_rest_from_the_disk(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for step in range(1, 8):
        save(folder, step)
    assert folder.prune(best=2, every=3) == [1, 4, 5]
    assert folder.steps() == [2, 3, 6, 7]
    assert len(os.listdir(folder.checkpoints)) == 4


def test_one_process_writes_a_run_and_a_killed_one_gives_it_free(tmp_path: Path) -> None:
    folder = make(tmp_path)
    code = (
        "import sys, time, pathlib; from agentlightning.training.run_folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {holder.pid} "), folder.lock():
            pass
        (folder.checkpoints / ".part-00001-1").mkdir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with folder.lock():
        assert os.listdir(folder.checkpoints) == []  # what the dead one left half-written is gone
    with folder.lock():
        pass
