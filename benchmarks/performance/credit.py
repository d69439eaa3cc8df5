"""Draws learning curves of `per_step` and `identical` credit, on a two-turn task where only the second turn can be learned.

    python benchmarks/performance/credit.py                    # 30 steps, 3 seeds: 4 minutes on one idle core
    python benchmarks/performance/credit.py --luck 0           # control: without luck, both learn
    python benchmarks/performance/credit.py --tokens 4 8       # a longer first turn adds noise of its own
    python benchmarks/performance/credit.py --chart docs/credit.png

A tiny model with random weights runs through the real agent, gateway, store, and trainer. The first turn earns luck: plus or minus
`--luck`, random for each rollout, whatever its reply. The second turn earns skill: the share of letters among its characters, 0 to 1. The
agent returns the sum, and also rewards each turn with its own part. Runs differ only in their credit:

    identical                         both turns earn the sum
    per_step (rollout_weight = 0)     a turn earns its own reward and later ones, so the second turn earns no luck

The first turn earns luck with either credit. Its tokens train the same weights, so it is short here.

The script prints the mean skill of each step's rollouts (mean and deviation over seeds) and the gain by the end.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

import agentlightning as agl
from agentlightning.capture.recorder import current
from agentlightning.training.chart import SAMPLED, TRAIN
from agentlightning_torch.testing import tiny_model

CREDITS: dict[str, Any] = {"identical": "identical", "per_step": {"name": "per_step", "rollout_weight": 0.0}}
COLORS = {"identical": SAMPLED, "per_step": TRAIN}
TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3"])]
LAST = 5
"""Number of final steps in the average."""

Curves = NDArray[np.float64]


def agent_of(luck: float, tokens: Sequence[int], seen: Callable[[int, float], None]) -> Any:
    """Return the agent. Its two turns have these tokens, which are characters. `seen` receives the step and skill of each rollout."""

    async def agent(task: Any, llm: agl.LLM) -> float:
        recorder = current()
        assert recorder is not None
        rollout = recorder.rollout
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": task["text"]}]
            first = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=tokens[0])
            lucky = luck * random.Random(f"{rollout.seed} {rollout.group} {rollout.index}").choice((-1, 1))
            agl.reward(lucky, name="luck", call=first.system_fingerprint)
            messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "go on"}]
            second = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=tokens[1])
        text = second.choices[0].message.content or ""
        skill = sum(letter.isalpha() for letter in text[: tokens[1]]) / tokens[1]
        agl.reward(skill, name="skill", call=second.system_fingerprint)
        seen(rollout.step or 0, skill)
        return lucky + skill

    return agent


def learn(credit: Any, model: str, seed: int, options: argparse.Namespace, advance: Callable[[], None]) -> list[float]:
    """Run one training run and return the mean skill per step. `options` are those of `main`."""
    skills: dict[int, list[float]] = defaultdict(list)

    def seen(step: int, skill: float) -> None:
        skills[step].append(skill)
        advance()

    with tempfile.TemporaryDirectory() as folder:
        agl.train(
            agent_of(options.luck, options.tokens, seen),
            tasks=TASKS[: options.tasks],
            model=model,
            folder=folder,
            seed=seed,
            steps=options.steps,
            tasks_per_step=options.tasks,
            algorithm={"name": "lightning", "group_size": options.group, "credit": credit, "advantage": "rloo"},
            trainer={"name": "torch", "lr": 3e-3},
            engine={"name": "torch", "device": "cpu", "dtype": "float32"},
            checkpoints={"every": 0},
            trackers=[],
            progress=False,
        )
    return [float(np.mean(skills[step])) for step in range(options.steps)]


def report(curves: dict[str, Curves], luck: float, console: Console) -> None:
    """Print the curves (seeds, steps) as a table, and the gains."""
    seeds, steps = next(iter(curves.values())).shape
    table = Table(title=f"skill with a luck of ±{luck:g}")
    for column in ("step", *curves):
        table.add_column(column, justify="right", min_width=0 if column == "step" else 18)
    for step in range(steps):
        table.add_row(str(step + 1), *(f"{curve[:, step].mean():.3f} ± {curve[:, step].std():.3f}" for curve in curves.values()))
    console.print(table)
    last = min(LAST, steps)
    summary = Table(
        "credit", "step 1", f"last {last} steps", "gained", "ratio", "in each seed", title=f"what was learned, over {seeds} seeds"
    )
    least: float | None = None
    for name, curve in curves.items():
        ends = curve[:, -last:].mean(axis=1)
        gained = ends - curve[:, 0]
        least = float(gained.mean()) if least is None else least
        in_each = ", ".join(f"{value:+.3f}" for value in gained)
        ratio = f"{gained.mean() / least:.1f}" if least > 0 else "-"
        summary.add_row(name, f"{curve[:, 0].mean():.3f}", f"{ends.mean():.3f}", f"{gained.mean():+.3f}", ratio, in_each)
    console.print(summary)


def draw(curves: dict[str, Curves], luck: float, path: Path) -> None:
    """Draw the curves: the mean over seeds, and the range from lowest to highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for (name, curve), style in zip(curves.items(), ("--", "-"), strict=True):
        at = np.arange(1, curve.shape[1] + 1)
        axes.fill_between(at, curve.min(axis=0), curve.max(axis=0), color=COLORS[name], alpha=0.15, linewidth=0)
        last = min(LAST, len(at))
        label = f"credit {name}: {curve[:, 0].mean():.2f} to {curve[:, -last:].mean():.2f} (mean of the last {last} steps)"
        axes.plot(at, curve.mean(axis=0), color=COLORS[name], linestyle=style, linewidth=2, marker=".", label=label)
    seeds = next(iter(curves.values())).shape[0]
    axes.set(
        title=f"Two turns, a luck of ±{luck:g} in the first, skill in the second",
        xlabel=f"training step (mean of {seeds} seeds; band: lowest to highest)",
        ylabel="mean skill of the second turn",
        ylim=(-0.03, 1.05),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure.savefig(path, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="training steps per run")
    parser.add_argument("--seeds", type=int, default=3, help="runs per credit, each with its own randomness")
    parser.add_argument("--luck", type=float, default=1.0, help="luck of the first turn, plus or minus; skill varies by about 0.08")
    parser.add_argument("--tokens", type=int, nargs=2, default=[1, 24], metavar=("FIRST", "SECOND"), help="tokens of the two turns")
    parser.add_argument("--tasks", type=int, default=len(TASKS), choices=range(1, len(TASKS) + 1), help="tasks per step")
    parser.add_argument("--group", type=int, default=8, help="rollouts per task")
    parser.add_argument("--chart", type=Path, help="write the curves to this PNG")
    options = parser.parse_args(arguments)
    if min(options.steps, options.seeds, options.group - 1) < 1:
        parser.error(
            "--steps and --seeds must be at least 1. --group must be at least 2, because the advantage compares the rollouts of a group."
        )
    torch.set_num_threads(1)  # more gain nothing at this size
    console = Console(width=100)
    bar = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    curves: dict[str, list[list[float]]] = {name: [] for name in CREDITS}
    with tempfile.TemporaryDirectory() as folder, Progress(*bar, console=Console(stderr=True), transient=True) as progress:
        model = tiny_model(Path(folder) / "tiny").path
        job = progress.add_task("", total=len(CREDITS) * options.seeds * options.steps * options.tasks * options.group)
        for seed in range(options.seeds):
            for name, credit in CREDITS.items():
                progress.update(job, description=f"credit {name}, seed {seed}")
                curves[name].append(learn(credit, model, seed, options, lambda: progress.advance(job)))
    arrays = {name: np.array(runs) for name, runs in curves.items()}  # (seeds, steps)
    report(arrays, options.luck, console)
    if options.chart is not None:
        draw(arrays, options.luck, options.chart)
        console.print(f"the curves are in {options.chart}")


if __name__ == "__main__":
    main()
