"""`agl bench`, whole, on a benchmark of its own with a tiny model: warm-up, training, evaluation, report, and going on after a stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agentlightning.cli.main import build
from agentlightning.contracts.hookspecs import hookimpl
from agentlightning.errors import MissingExtra, PluginError
from agentlightning.registry.registry import Registry, registry
from agentlightning.training import evaluation_key
from agentlightning.training.run_folder import RunFolder
from agentlightning_benchmarks.bench import catalog, chart
from agentlightning_benchmarks.bench.phases import _named  # pyright: ignore[reportPrivateUsage]
from agentlightning_benchmarks.bench.report import differences
from agentlightning_torch.testing import tiny_model

SOURCE = """
from pathlib import Path
from openai import AsyncOpenAI
from agentlightning.errors import ConfigError
from agentlightning_benchmarks.bench.benchmark import Benchmark


def train_tasks():
    return [{"id": f"train-{n}", "text": text} for n, text in enumerate("abcdefgh")]


def test_tasks():
    return [{"id": f"test-{n}", "text": text} for n, text in enumerate("xyz")]


def load(data):
    if not (data / "train.jsonl").is_file():
        raise ConfigError(f"{data / 'train.jsonl'}: this file does not exist")
    return [{"id": "real", "text": "r"}], [{"id": f"real-{n}", "text": "r"} for n in range(40)]


def demonstrate(task, messages, tools):
    return {"role": "assistant", "content": "good"}


async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages = [{"role": "user", "content": task["text"]}]
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=6)
    text = answer.choices[0].message.content or ""
    return sum(a == b for a, b in zip(text, "good")) / 4


BENCHMARK = Benchmark(folder=Path(__file__).parent, load=load)
"""
PLUGIN = """
from agentlightning import hookimpl


@hookimpl
def register_benchmarks(register):
    register("tiny", "NAME.tasks:BENCHMARK", summary="a benchmark of somebody else")
"""
COMMON = """
agent = "NAME.tasks:solve"
tasks = "NAME.tasks:train_tasks"
model = "MODEL"
tasks_per_step = 2
trainer = { name = "torch", lr = 3e-3, device = "cpu" }
"""
TRAINING = """
eval_tasks = "NAME.tasks:test_tasks"
steps = 2
algorithm = { name = "lightning", group_size = 4 }
eval = { every = 1, samples = 2 }
"""
WARM = """
steps = 3
algorithm = { name = "sft", demonstrations = "NAME.tasks:demonstrate" }
"""
Bench = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third-party package as pip installs it: one folder, with its entry point beside it."""
    folder = tmp_path_factory.mktemp("installed") / "bench_of_a_test"
    folder.mkdir()
    metadata = folder.parent / "bench_of_a_test-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-of-a-test\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[agentlightning]\n{folder.name} = {folder.name}.plugin\n")
    (folder / "plugin.py").write_text(PLUGIN.replace("NAME", folder.name))
    model = tiny_model(folder.parent / "tiny", context=4096).path
    (folder / "__init__.py").touch()
    (folder / "tasks.py").write_text(SOURCE)
    for name, text in {"cpu": TRAINING, "cpu_warm_start": WARM}.items():
        (folder / f"{name}.toml").write_text((COMMON + text).replace("NAME", folder.name).replace("MODEL", model))
    return folder


@pytest.fixture
def bench(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    """Run `agl bench ...`; the exit code and all that it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("COLUMNS", "160")
    registry.cache_clear()

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(build(), ["bench", *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    yield call
    registry.cache_clear()


def only(root: Path) -> Path:
    [folder] = root.glob("bench-*")
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_benchmark_warms_up_trains_measures_and_reports_every_number(bench: Bench, tmp_path: Path):
    code, output = bench("tiny", "--seed", "0", "--seed", "3")
    assert code == 0, output
    folder = only(tmp_path / "runs")
    result = result_of(folder)
    assert (result["benchmark"], result["seeds"], result["finished"]) == ("tiny", [0, 3], True)
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    for run in result["runs"]:
        assert [task["id"] for task in run["tasks"]] == ["test-0", "test-1", "test-2"]
        for kind, count in (("sampled", 2), ("greedy", 1)):
            for when in ("before", "after"):
                rewards = [task[kind][when] for task in run["tasks"]]
                assert all(len(each) == count for each in rewards)
                assert np.mean(rewards) == pytest.approx(run["eval"][kind][when]), "the same number, from the store and the metrics"
            assert [step for step, _ in run["curve"][f"test_{kind}"]] == [0, 1, 2]
        assert [step for step, _ in run["curve"]["train"]] == [1, 2]
        evaluations = 3 - len({entry["step"] for entry in run.get("eval_reused", ())})  # a step may leave the weights as they were
        assert run["requests"]["all"] == run["requests"]["completed"] == 2 * 2 * 4 + evaluations * 3 * 3
        tokens = run["tokens"]
        assert tokens["all"] == tokens["trained"] + sum(tokens["left_out"].values())
        warm = run["warm_start"]
        assert (warm["steps"], warm["requests"]["all"], warm["tokens"]["demonstrated"]) == (3, 6, 6 * 5)
        assert "train" not in warm["curve"], "what a demonstration earns is no reward of the policy"
        assert run["model"].startswith(str(folder / warm["folder"])), "training starts from the policy of the warm-up"
        assert run["seconds"] == pytest.approx(warm["seconds"] + run["seconds_of_training"])
    change = result["change"]["sampled"]
    assert change["pairs"] == 6
    mean = np.mean([run["eval"]["sampled"]["after"] - run["eval"]["sampled"]["before"] for run in result["runs"]])
    assert change["mean"] == pytest.approx(mean)
    assert change["low"] <= change["mean"] <= change["high"]
    assert change["rises"] == (change["low"] > 0)
    for part in (
        "start after a supervised warm-up (30 demonstrated tokens in 3 steps",
        "95% confidence interval",
        "6 pairs of test task and seed",
    ):
        assert part in output
    first, second = (run["warm_start"]["folder"] for run in result["runs"])
    assert first.endswith("tiny-warm-start-seed-0")
    assert second.endswith("tiny-warm-start-seed-3")
    before = sorted(folder.iterdir())
    code, _ = bench("--resume", str(folder))
    assert code == 0
    assert sorted(folder.iterdir()) == before, "a finished benchmark is read, not run again"


def test_the_training_after_a_warm_start_takes_its_tasks_in_another_order(package: Path, bench: Bench):
    benchmark = catalog.find("tiny")
    warm = catalog.warm_start(benchmark, "cpu", 3)
    assert warm is not None
    assert warm.seed != 3
    assert warm.seed != getattr(catalog.warm_start(benchmark, "cpu", 4), "seed", None)
    assert catalog.warm_start(benchmark, "cpu-adapter", 3) == warm
    assert catalog.warm_start(benchmark, "cpus", 3) is None
    assert catalog.warm_start(benchmark, "cpu-mine.toml", 3) is None


def test_evaluation_alone_trains_nothing_and_reports_in_the_same_form(bench: Bench, package: Path, tmp_path: Path):
    code, output = bench("tiny", "--eval-only", "--model", str(package.parent / "tiny"), "--folder", "measured")
    assert code == 0, output
    result = result_of(only(tmp_path / "measured"))
    [run] = result["runs"]
    assert set(run["eval"]) == {"sampled", "greedy"}
    assert set(run["eval"]["greedy"]) == {"before"}
    assert len(run["tasks"]) == 3
    assert "warm_start" not in run
    assert "change" not in result
    assert run["requests"]["all"] == 3 * 3
    assert "tokens" in run
    assert not list((only(tmp_path / "measured") / run["folder"]).glob("checkpoints/*"))
    assert "significant" not in output


@pytest.mark.slow
def test_seeds_and_later_benchmarks_share_the_evaluation_of_the_model(
    bench: Bench, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluation_key, "STARTED", time.time())  # the package was written after this process began
    for name, module in list(sys.modules.items()):  # code that other tests wrote, loaded, and perhaps changed
        if "/pytest-" in (getattr(module, "__file__", None) or "") and not name.startswith(package.name):
            monkeypatch.delitem(sys.modules, name)
    common = ("tiny", "--model", str(package.parent / "tiny"), "--folder", "measured", "--data", str(tmp_path), "--steps", "1")
    (tmp_path / "train.jsonl").touch()
    code, output = bench(*common, "--seed", "0", "--seed", "1")
    assert code == 0, output
    first, second = result_of(only(tmp_path / "measured"))["runs"]
    base = [[(entry["kind"], entry["run"]) for entry in run.get("eval_reused", ()) if entry["step"] == 0] for run in (first, second)]
    assert base == [[], [("greedy", f"../{first['folder']}")]]
    assert first["rollouts"]["eval"] - second["rollouts"]["eval"] == 32  # one greedy rollout of each task
    for one, other in zip(first["tasks"], second["tasks"], strict=True):
        assert one["greedy"]["before"] == other["greedy"]["before"]
        assert len(other["sampled"]["before"]) == len(other["sampled"]["after"]) == 2
    shutil.move(only(tmp_path / "measured"), tmp_path / "measured" / "bench-earlier")
    code, output = bench(*common[:7], "--seed", "0", "--eval-only")
    assert code == 0, output
    assert "reused" not in output  # the engine loads the model alone, so this is another evaluation
    shutil.move(next((tmp_path / "measured").glob("bench-tiny*")), tmp_path / "measured" / "bench-evaluation")
    code, output = bench(*common[:7], "--seed", "0", "--eval-only")
    assert "Step 0: reused the sampled and greedy evaluation" in " ".join(output.split())
    [run] = result_of(next((tmp_path / "measured").glob("bench-tiny*")))["runs"]
    assert len(run["tasks"]) == 32
    assert run["requests"]["all"] == 0
    code, output = bench(*common[:7], "--seed", "0", "--eval-only", "--no-eval-cache")
    assert "reused" not in output


def test_real_files_are_trained_on_and_measured_on_32_tasks(bench: Bench, tmp_path: Path):
    data = tmp_path / "data"
    code, output = bench("tiny", "--data", str(data), "--steps", "1")
    assert code == 2
    assert f"{data / 'train.jsonl'}: this file does not exist" in output
    assert not (tmp_path / "runs").exists(), "a benchmark that cannot start leaves no folder"
    data.mkdir()
    (data / "train.jsonl").touch()
    code, output = bench("tiny", "--data", str(data), "--steps", "1")
    assert code == 0, output
    [run] = result_of(only(tmp_path / "runs"))["runs"]
    assert len(run["tasks"]) == 32
    assert run["tasks"][0]["id"].startswith("real-")
    assert run["steps"] == 1


def test_a_config_file_of_ones_own_is_a_preset_and_may_search_prompts_before_it_trains_weights(bench: Bench, package: Path, tmp_path: Path):
    """The agent is beside the file. A finished benchmark is not run again, though its first run is the search."""
    (tmp_path / "mine.py").write_text(
        SOURCE.replace("async def solve(task, llm):", "async def solve(task, llm):\n    llm.prompt('system', default='be good')")
    )
    (tmp_path / "mine.toml").write_text(
        (COMMON + TRAINING.replace("steps = 2", "steps = 1"))
        .replace("NAME.tasks:solve", "mine:solve")
        .replace("NAME", package.name)
        .replace("MODEL", str(package.parent / "tiny"))
        .replace(
            'algorithm = { name = "lightning", group_size = 4 }',
            'algorithm = [{ name = "gepa", validation = 2, reflection_tokens = 8 }, { name = "lightning", group_size = 4 }]',
        )
    )
    code, output = bench("tiny", "--preset", "mine.toml")
    assert code == 0, output
    assert "supervised warm-up" not in output
    assert "held out" in output
    folder = only(tmp_path / "runs")
    [run] = result_of(folder)["runs"]
    assert run["folder"].endswith("-weights")
    assert run["stages"]["sampled"]["before"] is not None
    before = sorted(folder.iterdir())
    code, output = bench("--resume", str(folder))
    assert code == 0, output
    assert sorted(folder.iterdir()) == before
    assert result_of(folder)["runs"] == [run]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tinny"], "Unknown benchmark 'tinny'. Did you mean 'tiny'?"),
        (["--steps", "2"], "--steps needs the name of a benchmark: math, rag, text-to-sql, tiny"),
        (["tiny", "--resume", "x"], "Leave out NAME"),
        (["--resume", "nowhere"], "is not a benchmark folder"),
        (["tiny", "--model", "smollm"], "Unknown model 'smollm'"),
        (["tiny", "--model", "."], "has no config.json"),
        (["tiny", "--preset", "gpu"], "has no preset 'gpu'. It has: cpu. Or name a config file of yours"),
        (["tiny", "--preset", "mine.toml"], "mine.toml"),
        (["tiny", "--seed", "1", "--seed", "1"], "--seed 1 is given twice"),
        (["tiny", "--eval-only", "--steps", "2"], "--steps has no effect"),
        (["tiny", "--test-suite"], "Pass their folder with --data DIR"),
        (["tiny", "--test-suite", "--data", "."], "has no test suite"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said_before_anything_is_made(bench: Bench, tmp_path: Path, arguments: list[str], says: str):
    code, output = bench(*arguments)
    assert code in (1, 2)
    assert says in " ".join(output.split())
    assert not (tmp_path / "runs").exists()


def test_a_benchmark_whose_libraries_are_missing_names_them_and_how_to_install_them(monkeypatch: pytest.MonkeyPatch):
    class Plugin:
        @hookimpl
        def register_benchmarks(self, register: Any) -> None:
            register("far", "nowhere.tasks:BENCHMARK", extra="bench", needs=("no_such_library",))
            register("function", print)

    monkeypatch.setattr(catalog, "registry", lambda: Registry({"test": Plugin()}))
    with pytest.raises(MissingExtra, match=r"Benchmark 'far' needs no_such_library.*pip install 'agentlightning\[bench\]'"):
        catalog.find("far")
    with pytest.raises(PluginError, match=r"'test' registered benchmark 'function' as builtin_function.*Register an agentlightning_bench"):
        catalog.find("function")


def test_without_a_name_the_benchmarks_are_listed_those_of_other_packages_too(bench: Bench):
    code, output = bench()
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines() if line}
    assert rows.keys() >= {"math", "rag", "text-to-sql", "tiny"}
    assert "a benchmark of somebody else" in rows["tiny"]
    assert "bench_of_a_test" in rows["tiny"]


@pytest.mark.slow
def test_after_ctrl_c_it_goes_on_where_it_stopped(package: Path, bench: Bench, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys\n"
        "from agentlightning.cli.main import build\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background passes on that it is ignored
        f"sys.path.insert(0, {str(package.parent)!r})\n"
        "build()(['bench', 'tiny', '--steps', '400'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "2/400" in line:  # not in the warm-up
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130
    folder = only(tmp_path / "runs")
    assert f"agl bench --resume {folder.relative_to(tmp_path)}" in errors
    stopped = result_of(folder)
    assert not stopped["finished"]
    [run] = stopped["runs"]
    done = RunFolder.open(folder / run["folder"]).resume_point()[1].step
    assert done >= 2
    config = folder / run["folder"] / "config.toml"  # as if it had been asked for one step more than it had done
    config.write_text(config.read_text().replace("steps = 400", f"steps = {done + 1}"))
    code, output = bench("--resume", str(folder))
    assert code == 0, output
    result = result_of(folder)
    assert result["finished"]
    assert result["runs"][0]["steps"] == done + 1
    assert len(list(folder.glob("*-tiny-seed-0"))) == len(list(folder.glob("*-tiny-warm-start-seed-0"))) == 1


def test_differences_are_paired_by_task_and_half_a_pair_is_none():
    def run(**tasks: Any) -> dict[str, Any]:
        made = [{"id": name, "sampled": {"before": before, "after": after}} for name, (before, after) in tasks.items()]
        return {"tasks": made}

    table = differences([run(a=([0.0, 1.0], [1.0, 1.0]), b=([0.2], [0.1])), run(b=([None], [1.0]), a=([0.0], [1.0]))], "sampled")
    assert table[0].tolist() == pytest.approx([0.5, -0.1])
    assert table[1, 0] == 1.0
    assert np.isnan(table[1, 1])
    assert np.isnan(differences([run(a=([0.0], [1.0]))], "greedy")).all()


def test_the_mean_curve_stands_only_where_every_seed_was_measured():
    assert chart.mean_curve([[(0, 0.0), (1, 0.5), (2, 1.0)], [(0, 0.2), (2, 0.0)]]) == [(0, 0.1), (2, 0.5)]
    assert chart.mean_curve([]) == []
    assert not chart.draw({"benchmark": "x", "preset": "cpu", "runs": [{"seed": 0}]}, Path("never"))


def test_every_preset_of_the_project_is_a_configuration_that_holds():
    names = registry().names("benchmarks")
    assert names == ["math", "rag", "text-to-sql"]
    for name in names:
        entry = catalog.find(name)
        for size in ("cpu", "gpu", "real"):
            config = catalog.preset(entry, size)
            assert config.eval_tasks, f"{name} {size} is measured on nothing"
            if catalog.warm_start(entry, size, 0) is not None:
                assert catalog.warm_start(entry, size, 0).algorithm["name"] == "sft"


def test_a_run_that_somebody_renamed_is_none_of_the_benchmark(tmp_path: Path) -> None:
    for name in ("20260101-120000-math-seed-0", "best"):
        (tmp_path / name).mkdir()
        for file in ("config.toml", "store.db"):
            (tmp_path / name / file).touch()
    assert [run.name for run in _named(tmp_path, "math-seed-0")] == ["20260101-120000-math-seed-0"]
