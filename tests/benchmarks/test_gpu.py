"""The measurements for a GPU machine: pieces travel, steps are worked through, every result is kept, toy sizes run on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
MODULES = ("machine", "pieces", "results", "installing", "processes", "steps", "working", "packing", "reporting")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the folder, which is no package."""
    monkeypatch.syspath_prepend(GPU)
    yield SimpleNamespace(**{name: __import__(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)


def options(out: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"out": out, "pieces": None, "dry": True, "seconds": None, "again": [], "commit": None, **more})


def step(gpu: SimpleNamespace, name: str, code: str, minutes: float = 1, **more: Any) -> Any:
    return gpu.steps.Step(name, name, ("-c", code), minutes, **more)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def parcel(folder: Path, seed: int, size: int) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_bytes(bytes((seed + 7 * i) % 251 for i in range(size)))
    (folder / "empty").write_text("")
    return folder


MEASURE = "import json; open('figures.jsonl', 'a').write(json.dumps({'value': %s}) + '\\n')"


# pieces


def test_a_parcel_is_cut_into_pieces_and_comes_back_as_it_was(gpu: SimpleNamespace, tmp_path: Path) -> None:
    parcels = {"one": parcel(tmp_path / "a", 1, 50_000), "two": parcel(tmp_path / "b", 2, 100)}
    made = gpu.pieces.cut(parcels, tmp_path / "pieces", commit="abc", machine={"python": "3.12"}, piece_bytes=20_000)
    assert [len(made.parcels[name]) for name in ("one", "two")] == [4, 1]
    assert max(path.stat().st_size for path in (tmp_path / "pieces").glob("one-*")) == 20_000
    index = gpu.pieces.read_index(tmp_path / "pieces")
    assert index == made
    for name, source in parcels.items():
        assert gpu.pieces.assemble(index, name, tmp_path / "pieces", tmp_path / "out" / name) == []
        back = tmp_path / "out" / name
        assert (back / "inner" / "file").read_bytes() == (source / "inner" / "file").read_bytes()
        assert (back / "empty").read_bytes() == b""


def test_a_parcel_waits_for_its_pieces_by_name_and_takes_no_damaged_one(gpu: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    index = gpu.pieces.cut({"one": parcel(tmp_path / "a", 1, 50_000)}, folder, commit=None, machine={}, piece_bytes=20_000)

    def missing() -> list[str]:
        return gpu.pieces.assemble(index, "one", folder, tmp_path / "out")

    second, third = (folder / name for name in ("one-002", "one-003"))
    good = second.read_bytes()
    second.unlink()
    third.write_bytes(bytes(20_000))
    assert missing() == ["one-002", "one-003 (damaged: wrong checksum)"]
    second.write_bytes(good[:5])
    assert missing()[0] == "one-002 (damaged: 5 bytes of 20,000)"
    assert not (tmp_path / "out").exists()
    assert gpu.pieces.assemble(index, "two", folder, tmp_path / "two") == ["all of parcel two, which was not packed"]


def test_a_parcel_that_is_packed_anew_replaces_the_old_one(gpu: SimpleNamespace, tmp_path: Path) -> None:
    for seed in (1, 2):
        source = parcel(tmp_path / str(seed), seed, 100)
        index = gpu.pieces.cut({"one": source}, tmp_path / "pieces", commit=None, machine={})
        assert gpu.pieces.assemble(index, "one", tmp_path / "pieces", tmp_path / "out") == []
        assert (tmp_path / "out" / "inner" / "file").read_bytes() == (source / "inner" / "file").read_bytes()
    shutil.rmtree(tmp_path / "pieces")  # what is unpacked needs its pieces no more
    assert gpu.pieces.assemble(index, "one", tmp_path / "pieces", tmp_path / "out") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "has no index.json"), ("{", "cannot be read"), ('{"schema": 2}', "has schema 2"), ('{"schema": 1}', "cannot be read")],
)
def test_an_index_that_is_none_is_named(gpu: SimpleNamespace, tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(gpu.pieces.PiecesError, match=expected):
        gpu.pieces.read_index(tmp_path)


# working through the steps


def test_every_step_leaves_a_line_at_once_and_a_failure_does_not_stop_the_next(gpu: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    saw = f"import json; n = len(open({str(path)!r}).read().splitlines()); {MEASURE % 'n'}"
    steps = [
        step(gpu, "first", MEASURE % 1),
        step(gpu, "broken", "raise ValueError('the reason')"),
        step(gpu, "big", "raise MemoryError('CUDA out of memory. Tried to allocate')"),
        step(gpu, "killed", "import os; os.kill(os.getpid(), 9)"),
        step(gpu, "last", saw),
    ]
    assert gpu.working.work(steps, options(tmp_path, commit="abc")) == 1
    found = lines(tmp_path)
    assert [(line["step"], line["status"]) for line in found] == [
        ("first", "ok"),
        ("broken", "failed"),
        ("big", "out_of_memory"),
        ("killed", "out_of_memory"),
        ("last", "ok"),
    ]
    assert found[0]["figures"] == [{"value": 1}]
    assert found[-1]["figures"] == [{"value": 4}]
    assert "the reason" in found[1]["error"]
    assert all(line["dry"] and line["versions"]["torch"] and line["commit"] for line in found)


def test_a_second_call_does_what_is_left_and_again_does_it_once_more(gpu: SimpleNamespace, tmp_path: Path) -> None:
    steps = [step(gpu, "one", MEASURE % 1), step(gpu, "two", "raise SystemExit(3)")]
    gpu.working.work(steps, options(tmp_path))
    assert gpu.working.work([*steps, step(gpu, "three", MEASURE % 3)], options(tmp_path)) == 0
    assert [line["step"] for line in lines(tmp_path)] == ["one", "two", "three"]
    gpu.working.work(steps, options(tmp_path, again=["one"]))
    assert [line["step"] for line in lines(tmp_path)] == ["one", "two", "three", "one", "one"]
    assert lines(tmp_path)[-1]["figures"] == [{"value": 1}]  # not added to those of the first time


def test_a_step_past_its_limit_is_ended_with_everything_it_started(
    gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.processes, "GRACE", 1.0)
    code = (
        "import subprocess, sys, time\n" + MEASURE % 1 + "\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)'])\n"
        "open('pid', 'w').write(str(child.pid)); time.sleep(600)"
    )
    assert gpu.working.work([step(gpu, "slow", code, minutes=2 / 60)], options(tmp_path)) == 1
    (line,) = lines(tmp_path)
    assert (line["status"], line["figures"]) == ("timeout", [{"value": 1}])
    assert gone(int((tmp_path / "steps" / "slow" / "pid").read_text()))


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_step_that_the_end_of_a_call_interrupts_is_continued(
    gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.working, "GRACE", 0.5)
    monkeypatch.setattr(gpu.processes, "GRACE", 1.0)
    monkeypatch.setattr(gpu.working, "SHORTEST", 1)
    monkeypatch.setattr(gpu.working, "LEAST", 0.5)
    code = "import os, time\nif os.path.exists('second'): " + MEASURE % 2 + "\nelse: time.sleep(600)"
    steps = [step(gpu, "long", code), step(gpu, "next", MEASURE % 1)]
    assert gpu.working.work(steps, options(tmp_path, seconds=5)) == 3
    assert [(line["step"], line["status"]) for line in lines(tmp_path)] == [("long", "interrupted")]
    (tmp_path / "steps" / "long" / "second").touch()
    assert gpu.working.work(steps, options(tmp_path)) == 0
    assert [(line["step"], line["status"]) for line in lines(tmp_path)][1:] == [("long", "ok"), ("next", "ok")]


def test_time_of_interrupted_calls_counts_towards_the_limit(gpu: SimpleNamespace, tmp_path: Path) -> None:
    here = {"dry": True, "versions": {}}
    results = gpu.results.Results(tmp_path / "r.jsonl", here)
    results.add("a", "timeout", seconds=100.0)
    results.add("a", "interrupted", seconds=30.0)
    results.add("b", "interrupted", seconds=7.0)
    results.add("a", "interrupted", seconds=12.0)
    assert gpu.results.Results(tmp_path / "r.jsonl", here).spent("a") == 42.0
    assert results.final("a") is None


KILLED = """
import argparse, sys
sys.path.insert(0, {gpu!r})
import steps, working
step = steps.Step("slow", "slow", ("-c", {code!r}), 1)
options = argparse.Namespace(out=__import__("pathlib").Path({out!r}), pieces=None, dry=True, seconds=None, again=[], commit=None)
working.work([steps.Step("first", "first", ("-c", {first!r}), 1), step], options)
"""


def test_a_kill_in_the_middle_of_a_step_loses_nothing_and_leaves_nothing_running(gpu: SimpleNamespace, tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "if os.path.exists('pid'): raise SystemExit(0)\n"
        + MEASURE % 1
        + "\nopen('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); time.sleep(600)"
    )
    program = KILLED.format(gpu=str(GPU), code=code, out=str(tmp_path), first=MEASURE % 7)
    process = subprocess.Popen([sys.executable, "-c", program])
    pid = tmp_path / "steps" / "slow" / "pid"
    for _ in range(600):
        if pid.exists():
            break
        time.sleep(0.1)
    with pytest.raises(gpu.pieces.PiecesError, match="Another benchmarks/gpu/run works"):
        gpu.working.work([], options(tmp_path))
    process.kill()
    process.wait()
    left = int(pid.read_text())
    assert Path(f"/proc/{left}").exists()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"step": "slow", "stat')  # as if the kill had come while it was written
    steps = [step(gpu, "first", MEASURE % 8), step(gpu, "slow", code)]
    assert gpu.working.work(steps, options(tmp_path)) == 0
    assert gone(left)
    found = gpu.results.read_results(tmp_path / "results.jsonl")
    assert [(line["step"], line["status"], line["figures"]) for line in found] == [
        ("first", "ok", [{"value": 7}]),
        ("slow", "interrupted", [{"value": 1}]),
        ("slow", "ok", [{"value": 1}]),
    ]


def test_ctrl_c_stops_the_step_and_notes_it(tmp_path: Path) -> None:
    code = "import time; open('begun', 'w'); time.sleep(600)"
    program = KILLED.format(gpu=str(GPU), code=code, out=str(tmp_path), first=MEASURE % 7)
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler)\n" + program])
    for _ in range(600):
        if (tmp_path / "steps" / "slow" / "begun").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert [(line["step"], line["status"]) for line in lines(tmp_path)] == [("first", "ok"), ("slow", "interrupted")]


def test_a_missing_piece_skips_its_steps_by_name_until_it_comes(
    gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = tmp_path / "pieces"
    made = {name: parcel(tmp_path / name, number, 30_000) for number, name in enumerate(("wheels", "smollm2", "qwen05"))}
    gpu.pieces.cut(made, pieces, commit=None, machine={}, piece_bytes=20_000)
    monkeypatch.setattr(gpu.working, "install", lambda out, missing, index: None if "wheels" in missing else sys.executable)
    steps = [step(gpu, "a", MEASURE % 1, parcels=("smollm2",)), step(gpu, "b", MEASURE % 2), step(gpu, "c", MEASURE % 3, parcels=("data",))]
    away = tmp_path / "away"
    away.mkdir()
    for name in ("wheels-002", "smollm2-001"):
        shutil.move(pieces / name, away / name)

    def after() -> list[tuple[str, str, str | None]]:
        assert gpu.working.work(steps, options(tmp_path / "out", pieces=pieces)) == 0
        return [(line["step"], line["status"], line.get("error")) for line in lines(tmp_path / "out")]

    waits = [(name, "skipped", "missing pieces: wheels-002") for name in "abc"]
    assert after() == waits
    assert after() == waits  # the same reason is noted once
    shutil.move(away / "wheels-002", pieces)
    assert after()[3:] == [
        ("a", "skipped", "missing pieces: smollm2-001"),
        ("b", "ok", None),
        ("c", "skipped", "missing pieces: all of parcel data, which was not packed"),
    ]
    shutil.move(away / "smollm2-001", pieces)
    assert after()[6:] == [("a", "ok", None)]
    assert "parcel qwen05: here" in capsys.readouterr().out


def test_a_step_that_is_measured_again_goes_on_in_the_next_call(gpu: SimpleNamespace, tmp_path: Path) -> None:
    ready = step(gpu, "a", MEASURE % 1)
    gpu.working.work([ready], options(tmp_path))
    results = gpu.results.Results(tmp_path / "results.jsonl", {"dry": True, "versions": {}})
    results.add("a", "again")
    results.add("a", "interrupted", seconds=5.0)
    (tmp_path / "steps" / "a" / "kept").write_text("")
    assert results.final("a") is None
    assert gpu.working.work([ready], options(tmp_path, again=["a"])) == 0
    assert (tmp_path / "steps" / "a" / "kept").exists()
    assert [line["status"] for line in lines(tmp_path)] == ["ok", "again", "interrupted", "ok"]


def test_an_old_error_in_the_log_is_not_the_new_one(gpu: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "steps" / "a"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("CUDA out of memory\n")
    gpu.working.work([step(gpu, "a", "raise ValueError('another')")], options(tmp_path))
    assert lines(tmp_path)[0]["status"] == "failed"


def test_pieces_for_another_machine_are_refused_before_anything_is_installed(gpu: SimpleNamespace, tmp_path: Path) -> None:
    for machine, expected in ({"python": "3.9.1", "platform": "linux-x86_64"}, "python 3.9"), ({"python": None}, "python None"):
        index = gpu.pieces.Index(None, machine, {})
        with pytest.raises(gpu.pieces.PiecesError, match=expected):
            gpu.installing.install(tmp_path, {}, index)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_in_our_own_environment_ends_nobody_above_us(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(GPU)!r}); import pathlib, processes; processes.end_leftovers(pathlib.Path({str(tmp_path)!r}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], env={**os.environ, "AGL_GPU_RUN_BY": str(tmp_path)}, check=False)
    assert answer.returncode == 0


def test_files_of_results_may_be_joined(gpu: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\ufeff" + result("a")[:40] + result("b") + "\n", encoding="utf-8")
    assert [line["step"] for line in gpu.results.read_results(path)] == ["b"]


def test_a_package_that_is_not_installed_skips_its_step(gpu: SimpleNamespace, tmp_path: Path) -> None:
    assert gpu.working.work([step(gpu, "a", MEASURE % 1, module="no_such_package")], options(tmp_path)) == 0
    assert lines(tmp_path)[0]["error"] == "no_such_package is not installed"


def test_what_cannot_be_done_is_told_in_one_line(gpu: SimpleNamespace, tmp_path: Path) -> None:
    def error(**more: Any) -> str:
        with pytest.raises(gpu.pieces.PiecesError) as caught:
            gpu.working.work([], options(**{"out": tmp_path, **more}))
        return str(caught.value)

    assert "--out FOLDER is missing" in error(out=None)
    assert "--pieces FOLDER is missing" in error(dry=False)
    assert "There is no step 'x'" in error(again=["x"])
    assert "Use at least 60" in error(seconds=10)
    (tmp_path / "results.jsonl").write_text("numbers\n")
    assert "line 1, is not a result" in error()
    (tmp_path / "results.jsonl").write_text('{"step": "a", "status": "ok", "dry": false, "versions": {}}\n')
    assert "Use another --out" in error()
    if not gpu.machine.gpus():
        assert "finds no GPU" in error(dry=False, pieces=tmp_path)


# the steps


def test_the_steps_have_names_of_their_own_and_scripts_that_exist(gpu: SimpleNamespace) -> None:
    steps = gpu.steps.STEPS
    assert len({each.name for each in steps}) == len(steps)
    scripts = {each.command[0].format(gpu=GPU) for each in steps}
    assert all(Path(script).is_file() for script in scripts)
    assert {name for each in steps for name in each.parcels} <= set(gpu.installing.PARCELS)
    assert all(each.minutes <= 15 for each in steps)


def scripts(gpu: SimpleNamespace) -> dict[str, Any]:
    """The first step of each script, by the script's name."""
    first: dict[str, Any] = {}
    for each in gpu.steps.STEPS:
        if each.module is None:
            first.setdefault(Path(each.command[0]).stem, each)
    return first


@pytest.mark.slow
def test_a_script_runs_at_toy_size_with_the_model_of_another(gpu: SimpleNamespace, tmp_path: Path) -> None:
    steps = scripts(gpu)
    assert gpu.working.work([steps["models"], steps["engine_speed"]], options(tmp_path)) == 0, lines(tmp_path)
    model, engine = (line["figures"][0] for line in lines(tmp_path))
    assert (model["model"], engine["tokens"]) == ("smollm2", 8)


@pytest.mark.skipif(not os.environ.get("AGL_TEST_GPU_SCRIPTS"), reason="a minute of one core; run: make test-gpu-scripts")
def test_each_script_runs_at_toy_size_and_its_figures_are_reported(gpu: SimpleNamespace, tmp_path: Path) -> None:
    assert gpu.working.work(list(scripts(gpu).values()), options(tmp_path)) == 0, [line.get("error") for line in lines(tmp_path)]
    measured = {line["step"]: line["figures"] for line in lines(tmp_path)}
    assert measured["tests-torch"][-1]["passed"] > 5
    exact = [figure for figure in measured["exactness-smollm2"] if figure["dtype"] == "float32"]
    assert len(exact) == 3
    assert all(figure["max"] < 1e-4 for figure in exact)
    assert measured["engine-smollm2"][0]["tokens"] == 8
    forest, rows = measured["trainer-smollm2"]
    assert (forest["way"], rows["way"]) == ("forest", "rows")
    assert forest["tokens"] < rows["tokens"]
    assert measured["demo"][-1]["eval"].keys() == {"sampled", "greedy"}
    answer = report(tmp_path / "results.jsonl", "--out", tmp_path / "docs" / "gpu.md")
    assert answer.returncode == 0, answer.stderr
    check_page(tmp_path / "docs", "Toy sizes on a CPU")


# the report


def result(name: str, *figures: dict[str, Any], status: str = "ok", **more: Any) -> str:
    gpus = [{"name": "NVIDIA H100", "memory_mib": 81559, "driver": "580.1"}]
    line = {"step": name, "status": status, "dry": False, "gpus": gpus, "versions": {"torch": "2.11"}, "commit": "abc1234", "seconds": 5}
    return json.dumps({**line, "figures": list(figures), **more})


def report(path: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, GPU / "report", path, *more], capture_output=True, text=True, check=False)


def check_page(folder: Path, text: str) -> None:
    """Every section is there, and the chart comes last."""
    page = (folder / "gpu.md").read_text()
    for part in (text, "## Tests", "## Exactness", "## Engine", "## Trainer", "## Learning", "![Mean reward"):
        assert part in page
    assert page.index("## Learning") < page.index("![Mean reward")
    assert (folder / "gpu-curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_has_a_section_for_every_kind_of_step_and_a_chart(tmp_path: Path) -> None:
    point = {"model": "smollm2", "context": 64, "group": 2}
    curve = {"curve": "demo", "model": "smollm2", "tasks": "generated", "engine": "torch", "trainer": "torch", "steps": 1, "finished": True}
    metrics = [{"step": 0, "eval.sampled": 0.1, "eval.greedy": 0.2}, {"step": 1, "reward": 0.3, "eval.sampled": 0.4, "eval.greedy": 0.5}]
    measured = {kind: {"before": 0.1, "after": 0.4} for kind in ("sampled", "greedy")}
    rows = [
        result("tests-torch", {"passed": 9, "seconds": 3}),
        result("exactness-smollm2", {"model": "smollm2", "dtype": "float32", "way": "forest", "mean": 1e-7, "max": 2e-6, "gradient": 3e-5}),
        result("engine-smollm2", {**point, "reply": 4, "tokens": 8, "decode_tokens_per_s": 5.0, "peak_bytes": None}),
        result("trainer-smollm2", {**point, "way": "forest", "seconds": 1.0, "tokens": 90, "trained_tokens_per_s": 9.0}),
        result("demo", {**curve, "seconds": 60, "eval": measured, "metrics": metrics}),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(rows))
    answer = report(path, "--out", tmp_path / "docs" / "gpu.md")
    assert answer.returncode == 0, answer.stderr
    assert "gpu.md and " in answer.stdout
    check_page(tmp_path / "docs", "| smollm2 | float32 | forest | 1.0e-07 | 2.0e-06 | 3.0e-05 |")
    page = (tmp_path / "docs" / "gpu.md").read_text()
    assert "| demo | smollm2 | generated | torch / torch | 1 | 0.100 | 0.400 | 0.100 | 0.400 | 1.0 |" in page


def test_each_figure_has_its_gpu_and_commit_and_what_was_not_measured_says_so(tmp_path: Path) -> None:
    point = {"model": "smollm2", "context": 1024, "group": 4, "tokens": 2048}
    rows = [
        result(
            "tests-torch",
            {"test": "a.py::test_x", "error": "..."},
            {"passed": 9, "failed": 1, "seconds": 3},
            status="failed",
            error="E x\n",
        ),
        result("engine-smollm2", {**point, "reply": 128, "decode_tokens_per_s": 1234.5, "peak_bytes": 2**31}),
        result(
            "trainer-smollm2",
            {**point, "way": "forest", "seconds": 2.0, "trained_tokens_per_s": 10.0, "bf16_share": 0.25},
            {**point, "way": "rows", "seconds": 3.0, "trained_tokens_per_s": 7.0, "bf16_share": None},
            {**point, "group": 8, "way": "rows", "error": "out of memory"},
        ),
        result("demo", status="timeout", error="cut\n"),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(rows))
    page = report(path).stdout
    by = {line.split("|")[1].strip() + line.split("|")[4].strip(): line for line in page.splitlines() if line.count("|") > 6}
    assert "| 9 | 1 | 0 | test_x | NVIDIA H100, driver 580.1 | abc1234 |" in page
    assert "| smollm2 | 1,024 | 4 | 128 | 1,234 | 2.0 GiB |" in page
    assert "| 25.0% | 1.00 | not measured |" in by["smollm2forest"]
    assert "| smollm2 | 1,024 | 4 | rows | 2,048 | 7 | not measured | 1.50 | not measured |" in page
    assert "out of memory" in page
    assert "| `demo` | timeout: cut | 5 |" in page
    tables = [line for line in page.splitlines() if line.startswith("| ") and "GPU | " not in line]
    assert all("NVIDIA H100, driver 580.1" in line and "abc1234" in line for line in tables)


def test_the_last_result_of_a_step_is_the_one_reported(gpu: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(
        "\n".join([result("a", status="skipped"), result("a", seconds=1), result("a", seconds=2), result("a", status="interrupted")])
    )
    (line,) = gpu.reporting.latest(gpu.results.read_results(path))
    assert (line["status"], line["seconds"]) == ("ok", 2)


FOREIGN = '{"step": "engine-x", "status": "ok", "dry": false, "versions": {}, "figures": [{"a": 1}]}\n'
NO_VERSIONS = '{"step": "a", "status": "ok", "dry": false}\n'
DRY = '{"step": "a", "status": "ok", "dry": true, "versions": {}}\n'


@pytest.mark.parametrize(
    "content", [None, "", "text\n", b"\xff\xfe", FOREIGN, FOREIGN + DRY, '{"step": "a", "status": "ok", "dry": false}\n']
)
def test_a_file_without_results_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "results.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    answer = report(path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1


# packing


def test_what_is_packed_is_what_the_extra_needs_beyond_the_machine(gpu: SimpleNamespace) -> None:
    needs = [need.split(">")[0].split("=")[0].split("[")[0] for need in gpu.packing.requirements()]
    assert {"msgspec", "langgraph", "openai-agents", "autogen-ext", "bm25s", "torch", "gguf", "hatchling", "pytest-asyncio"} <= set(needs)
    assert not any(need.startswith("agentlightning") for need in needs)
    machine = gpu.packing.read_machine(GPU / "machine.json")
    flags = gpu.packing.target_flags(machine)
    assert flags[:4] == ["--python-version", "3.12", "--implementation", "cp"]
    assert {"manylinux_2_39_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= set(flags)
    present = {"torch": "2.11.0", "rich": "", "numpy": "2.5.2"}
    has = gpu.packing._has
    assert has(present, "rich", "15.0")
    assert has(present, "numpy", "2.5.2")
    assert not has(present, "numpy", "2.4")
    assert has(present, "nvidia-cudnn-cu13", "9")
    assert not has(present, "gguf", "0.19")


def test_a_probe_can_be_packed_for(gpu: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(subprocess.run([GPU / "run", "--probe"], capture_output=True, text=True, check=True).stdout)
    machine = gpu.packing.read_machine(path)
    assert machine["python"].count(".") == 2
    assert gpu.packing.target_flags(machine)


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"python": "3", "platform": "linux-x86_64", "packages": {}}'])
def test_a_file_that_describes_no_machine_is_named(gpu: SimpleNamespace, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "probe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(gpu.pieces.PiecesError, match=r"probe\.json"):
        gpu.packing.read_machine(path)
    with pytest.raises(gpu.pieces.PiecesError, match="no folder gsm8k"):
        gpu.packing.pack(tmp_path / "out", tmp_path, {})


def test_the_commands_say_how_they_are_used() -> None:
    for command in ("pack", "run", "report"):
        answer = subprocess.run([GPU / command, "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "150"})
        assert f"benchmarks/gpu/{command}" in answer.stdout
