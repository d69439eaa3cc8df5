"""Compares ways to learn one task from equally many tokens: rewards, a teacher, both, demonstrations, and a judge.

    python benchmarks/performance/ways.py                                # the demo's task, 3 seeds: 1 to 3 hours on two cores
    python benchmarks/performance/ways.py --ways rewards teacher --seeds 0 --folder runs/ways
    python benchmarks/performance/ways.py --steps 1 --held-out 4 --seeds 0      # some minutes, without meaning

With an agent of your own, and a judge whose weights are in FOLDER:

    python benchmarks/performance/ways.py --config config.toml --ways rewards judge --judge FOLDER --rubric "The answer is polite."

The config file is one for `agl train`, with a returned reward and `eval_tasks`. Each way gets its model and as many rollouts. For the demo,
that is 64 a step:

    rewards          LightningRL, as in `agl demo`: 8 tasks of 8 rollouts a step
    teacher          on-policy distillation without rewards: 64 tasks of one rollout a step
    both             LightningRL, with the teacher's advantage times 0.05 added
    demonstrations   a third of the steps train 8 rollouts of the teacher each, then LightningRL for the other rollouts
    judge            LightningRL, where the model of `--judge` gives the rewards by a rubric. It sees the task with all keys

The teacher is the same model after LightningRL with a seed of its own, so it knows the task. Its training is not counted. The table has
the agent's own reward on held-out tasks, and the difference to `rewards` with its 95% interval, paired by task and seed. Equally many
rollouts sample unequally many tokens, so for each seed, all ways are read after the tokens of the way with the fewest. Tokens are those
that the student sampled, or that the teacher demonstrated. Between two evaluations (at half of the steps, and after the last), rewards are
interpolated. A repeated command continues in its folder: finished runs are read, and others are resumed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

import agentlightning as agl
from agentlightning.cli.view import print_whole, records_console
from agentlightning.config.parts import Part
from agentlightning.config.schema import build_config, load_config
from agentlightning.records.comparison import Side
from agentlightning.records.equal_tokens import equal_tokens, measured
from agentlightning.training.eval_rollouts import KINDS, Kind
from agentlightning.training.interval import bootstrap
from agentlightning.training.job import job_of
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning_benchmarks.demo.command import CONFIG
from agentlightning_benchmarks.demo.tasks import make_tasks
from agentlightning_torch.heap import give_back

WAYS = ("rewards", "teacher", "both", "demonstrations", "judge")
TAUGHT = ("teacher", "both", "demonstrations")
TEACHER_SEED = 9
KEY = "AGL_WAYS_KEY"
"""Environment variable with the key of the server of a teacher or a judge."""
START = 300.0
"""Seconds until that server must answer."""
LONGEST = 256
"""Tokens of a judgement, at most. A small judge may never end one."""
RUBRIC = "The task has the right `answer`, a number. If the reply says the same number, the score is 10. If not, it is 0."


def main() -> None:
    options = parse()
    settings, tasks, held_out = task_of(options)
    run = Runs(options.folder.resolve(), Compared(settings.pop("agent"), tasks, held_out, options.rubric))
    os.chdir(options.config.parent)  # its modules and relative paths
    teacher: Path | None = None
    if set(options.ways).intersection(TAUGHT):
        teacher = checkpoint(run("rewards", TEACHER_SEED, settings))
    served = {"demonstrations": teacher, "judge": options.judge}
    runs = {
        seed: [RunFolder.open(run(way, seed, settings_of(way, settings, str(teacher)), served.get(way))) for way in options.ways]
        for seed in options.seeds
    }
    own = {**settings.get("reward_weights", {}), "judge": 0.0}  # the agent's own reward
    print_table(options.ways, runs, {seed: asyncio.run(equal_tokens(of_seed, own)) for seed, of_seed in runs.items()})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="The config file of another agent. Default: the demo's.")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="Default: all, but judge only with --judge.")
    parser.add_argument("--judge", type=Path, help="The model folder of the judge.")
    parser.add_argument("--rubric", default=RUBRIC, help="What the judge scores. Default, for the demo: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help=f"Not {TEACHER_SEED}, the teacher's. Default: 0 1 2.")
    parser.add_argument("--steps", type=int, help="Steps of the ways with groups of rollouts. Default: those of the config file.")
    parser.add_argument("--held-out", type=int, default=256, help="The demo's held-out tasks. Default: 256.")
    parser.add_argument("--folder", type=Path, default=Path("runs/ways"), help="Folder of the runs. Default: runs/ways.")
    options = parser.parse_args()
    options.ways = options.ways or [way for way in WAYS if way != "judge" or options.judge]
    options.config, options.judge = options.config.resolve(), options.judge and options.judge.resolve()
    if "judge" in options.ways and options.judge is None:
        parser.error("the way judge needs --judge with the folder of a model")
    if "judge" in options.ways and options.config != CONFIG.resolve() and options.rubric == RUBRIC:
        parser.error("the way judge needs --rubric with another agent than the demo's")
    if TEACHER_SEED in options.seeds:
        parser.error(f"seed {TEACHER_SEED} is the teacher's")
    return options


def task_of(options: argparse.Namespace) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Return the settings of the config file with its agent, its tasks, and its held-out tasks."""
    config = load_config(options.config)
    if config.agent is None or config.eval_tasks is None:
        raise SystemExit(f"{options.config}: The comparison needs 'agent' and 'eval_tasks'.")
    job = job_of(config)  # finds the modules of the agent
    held_out = make_tasks("test", options.held_out) if options.config == CONFIG.resolve() else [task.input for task in job.eval_tasks]
    settings = tomllib.loads(options.config.read_text())
    for name in ("name", "tasks", "eval_tasks", "task_columns"):
        settings.pop(name, None)
    steps = options.steps or config.steps
    settings |= {"steps": steps, "eval": {**settings.get("eval", {}), "every": -(-steps // 2)}}
    return settings, [task.input for task in job.tasks], held_out


def settings_of(way: str, settings: dict[str, Any], teacher: str) -> dict[str, Any]:
    """Return the settings of a way, made from those of the config file. `teacher`: the folder of its weights."""
    config = build_config({"agent": "module:function", "tasks": "tasks.jsonl", **settings})  # for its defaults
    group, algorithm = Part.parse("algorithms", config.algorithm, "algorithm").make().group_size, settings.get("algorithm", {})
    algorithm = {"name": algorithm} if isinstance(algorithm, str) else algorithm
    if way in ("rewards", "judge"):
        return settings
    if way == "teacher":
        one = {"tasks_per_step": config.tasks_per_step * group, "algorithm": {"name": "distillation"}}
        return {**settings, **one, "teacher": {"model": teacher}}
    if way == "both":
        return {**settings, "algorithm": {**algorithm, "teacher_coef": 0.05}, "teacher": {"model": teacher}}
    shown = max(1, config.steps // 3)
    steps = shown + config.steps - -(-shown // group)  # so many steps have the rollouts that are shown
    return {**settings, "steps": steps, "algorithm": {**algorithm, "demonstrated_steps": shown}}


class Compared(NamedTuple):
    """What the ways have in common."""

    agent: str
    tasks: list[Any]
    held_out: list[Any]
    rubric: str


class Runs:
    """Runs in a folder. A finished one is not run again."""

    def __init__(self, folder: Path, compared: Compared) -> None:
        self._folder, self._compared = folder, compared

    def __call__(self, way: str, seed: int, settings: dict[str, Any], served: Path | None = None) -> Path:
        """Return the folder of the finished run. `served`: weights of a teacher or a judge that answers over HTTP."""
        begun = self._begun(way, seed)
        if begun is not None and begun.read_state().finished:
            return begun.path
        self._announce(f"{way}-{seed}")
        arguments = {**settings, "name": f"{way}-{seed}", "seed": seed, "resume": begun.path if begun else None}
        compared = self._compared
        arguments |= {"tasks": compared.tasks, "eval_tasks": compared.held_out, "folder": self._folder}
        if served is None:
            run = agl.train(compared.agent, **arguments)
        else:
            with server(served, self._folder / f"{way}.log") as address:
                if way == "judge":
                    judge = {
                        "base_url": address, "model": served.name, "api_key_env": KEY, "rubric": compared.rubric, "max_tokens": LONGEST,
                    }  # fmt: skip
                    judged = {"reward": {"judge": judge}, "reward_weights": {"judge": 1.0, "return": 0.0}}
                    run = agl.train(compared.agent, **{**arguments, **judged})
                else:
                    engine = {"name": "upstream", "url": address, "key_env": KEY}
                    run = agl.train(compared.agent, **arguments, teacher={"model": served.name, "engine": engine})
        if run.stopped:
            raise KeyboardInterrupt("Stopped. The same command continues.")
        return run.folder

    def _begun(self, name: str, seed: int) -> RunFolder | None:
        begun = [run for run in RunFolder.all(self._folder) if run.name.split("-", 2)[2:] == [f"{name}-{seed}"] and run.state.exists()]
        return begun[-1] if begun else None

    def _announce(self, name: str) -> None:
        print(name, file=sys.stderr)
        gc.collect()  # the last run's weights may be part of reference cycles
        give_back()


def checkpoint(folder: Path) -> Path:
    """Return the weights after a run's last step."""
    return max((folder / "checkpoints").glob("step-*"))


@contextmanager
def server(weights: Path, log: Path) -> Iterator[str]:
    """Serve weights on a free port, and yield the address for OpenAI clients. The key is in the environment variable `KEY`."""
    os.environ[KEY] = secrets.token_urlsafe(16)
    with socket.socket() as listener:  # a port that is free now
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "agentlightning", "serve", str(weights), "--port", str(port), "--store", "memory:"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "AGL_TOKEN": os.environ[KEY]})
    try:
        wait(f"http://127.0.0.1:{port}/ready", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server is ready."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"The server did not start. See {log}.")


def print_table(ways: Sequence[str], runs: Mapping[int, Sequence[RunFolder]], compared: Mapping[int, tuple[int, Sequence[Side]]]) -> None:
    """Print the rewards of each way, and their differences to `rewards`.

    `runs`: those of each seed, in the order of `ways`. `compared`: their number of tokens, and what each had learned after as many.
    """
    kinds: list[Kind] = [kind for kind in KINDS if any(kind in side.evaluation.rewards for _, sides in compared.values() for side in sides)]
    table = Table(
        "way", *(f"{kind}{more}" for kind in kinds for more in ("", ", minus rewards")), "sampled tokens", "trained tokens", "seconds"
    )
    for place, way in enumerate(ways):
        cells = list[str]()
        for kind in kinds:
            rewards = by_way(kind, [sides for _, sides in compared.values()])
            interval = bootstrap(rewards[place] - rewards[ways.index("rewards")]) if "rewards" in ways and way != "rewards" else None
            cells.append(f"{np.nanmean(rewards[place]):.3f}")
            cells.append("" if interval is None else f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})")
        rows = [[row for row in read_metrics(of_seed[place].path) if row["step"] > 0] for of_seed in runs.values()]
        sampled = np.mean([measured(of_seed[place])[-1].tokens for of_seed in runs.values()])
        trained = np.mean([sum(row.get("trained_tokens", 0) for row in run) for run in rows])
        seconds = np.mean([sum(row["seconds"] - row.get("seconds.evaluation", 0.0) for row in run) for run in rows])
        table.add_row(way, *cells, f"{sampled:,.0f}", f"{trained:,.0f}", f"{seconds:.0f}")
    console = records_console()
    print_whole(table, console)
    for seed, (tokens, sides) in compared.items():
        names = ", ".join(side.name for side in sides)
        console.print(f"Seed {seed}: rewards after {tokens:,} sampled tokens, from {names}.", soft_wrap=True)


def by_way(kind: Kind, seeds: Sequence[Sequence[Side]]) -> NDArray[np.float64]:
    """Return (ways, seeds, tasks) rewards. NaN: a run has not measured it."""
    scored = [[side.evaluation.rewards.get(kind, {}) for side in sides] for sides in seeds]
    tasks = sorted({task for sides in scored for rewards in sides for task in rewards})
    return np.array([[[rewards.get(task, np.nan) for task in tasks] for rewards in sides] for sides in scored]).swapaxes(0, 1)


if __name__ == "__main__":
    main()
