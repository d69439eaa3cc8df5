"""Turns results into tables and curves for the docs. Each figure names its GPU and commit.

    benchmarks/gpu/report RESULTS.jsonl [--out docs/gpu.md]

Without --out, the page is printed. With it, the learning curves are saved next to it as gpu-curves.png (needs matplotlib).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pieces import PiecesError
from results import FINAL, read_results

Line = dict[str, Any]
TITLES = {"sampled": "eval.sampled", "greedy": "eval.greedy"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.jsonl", help="results file from benchmarks/gpu/run")
    parser.add_argument("--out", type=Path, metavar="PAGE.md", help="write the page here, and gpu-curves.png next to it")
    options = parser.parse_args()
    try:
        lines = read_results(options.results)
        if not options.results.exists():
            raise PiecesError(f"{options.results} does not exist. Give the file that benchmarks/gpu/run wrote.")
        if len({line["dry"] for line in lines}) > 1:
            raise PiecesError(f"{options.results} has results of --dry and of a GPU. Report them separately.")
        if not lines:
            raise PiecesError(f"{options.results} has no results. Give the file that benchmarks/gpu/run wrote.")
    except (PiecesError, OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        write(latest(lines), options.out)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"error: {options.results} has a figure that benchmarks/gpu/run did not write ({error}).") from None


def write(lines: Sequence[Line], out: Path | None) -> None:
    """Print the page, or write it with its chart."""
    if out is None:
        print(page(lines))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    chart = out.with_name("gpu-curves.png")
    try:
        drawn = draw(lines, chart)
    except ModuleNotFoundError as error:
        drawn = False
        print(f"no chart: {error.name} is not installed")
    out.write_text(page(lines, chart.name if drawn else None), encoding="utf-8")
    print(f"{out}" + (f" and {chart}" if drawn else ""))


def latest(lines: Sequence[Line]) -> list[Line]:
    """Return each step's last result, or the reason it is missing, in order of first appearance."""
    chosen: dict[str, Line] = {}
    for line in lines:
        name = line["step"]
        if name not in chosen or line["status"] in FINAL or chosen[name]["status"] not in FINAL:
            chosen[name] = line
    return list(chosen.values())


def page(lines: Sequence[Line], chart: str | None = None) -> str:
    """Return the whole page as Markdown."""
    sections = [
        "# What a GPU measured\n",
        "`benchmarks/gpu/run` measured these figures and `benchmarks/gpu/report` wrote this page.\n",
    ]
    if any(line["dry"] for line in lines):
        sections.append("**Toy sizes on a CPU (`--dry`), with a tiny random model under every name: no figure of speed or learning.**\n")
    sections.append(table(("step", "result", "seconds", "GPU", "torch", "commit"), (overview(line) for line in lines)))
    for title, text, prefix, render in SECTIONS:
        chosen = [line for line in lines if line.get("figures") and line["step"].startswith(prefix)]
        if rows := render(chosen):
            sections.append(f"## {title}\n\n{text}\n\n{rows}")
    if chart:  # below the curves, which come last
        sections.append(f"![Mean reward on eval tasks over training steps]({chart})\n")
    return "\n".join(sections)


def overview(line: Line) -> tuple[str, ...]:
    """Return a row of the first table."""
    reason = f": {line['error'].strip().splitlines()[-1][:120]}" if line.get("error") and line["error"].strip() else ""
    seconds = f"{line['seconds']:.0f}" if "seconds" in line else ""
    return (
        f"`{line['step']}`",
        line["status"].replace("_", " ") + reason,
        seconds,
        card(line),
        line["versions"].get("torch", ""),
        at(line),
    )


def card(line: Line) -> str:
    """Return the GPU with its driver."""
    gpus = line.get("gpus") or []
    return f"{gpus[0]['name']}, driver {gpus[0]['driver']}" if gpus and not line["dry"] else "CPU"


def at(line: Line) -> str:
    """Return the commit."""
    return line.get("commit", "unknown")


def tests(lines: Sequence[Line]) -> str:
    """Return the table of plugin test counts."""
    rows = []
    for line in lines:
        counts = line["figures"][-1]
        failed = [figure["test"].split("::")[-1] for figure in line["figures"] if "test" in figure]
        complete = "seconds" in counts
        numbers = [str(counts.get(name, 0)) if complete else "not measured" for name in ("passed", "failed", "skipped")]
        rows.append((line["step"], *numbers, ", ".join(failed[:8]), card(line), at(line)))
    return table(("tests", "passed", "failed", "skipped", "failures", "GPU", "commit"), rows)


def exactness(lines: Sequence[Line]) -> str:
    """Return the table of differences, in nats and relative."""
    rows = []
    for line, figure in figures_of(lines):
        way = figure.get("way", figure.get("what", ""))
        cells = [number(figure.get(key), "{:.1e}") for key in ("mean", "max", "gradient")]
        rows.append((figure["model"], figure.get("dtype", ""), way, *cells, figure.get("error", ""), card(line), at(line)))
    return table(("model", "dtype", "way", "mean, nats", "max, nats", "gradient", "", "GPU", "commit"), rows)


def engine(lines: Sequence[Line]) -> str:
    """Return the table of sampled tokens per second."""
    rows = []
    for line, figure in figures_of(lines):
        cells = (number(figure.get("decode_tokens_per_s"), "{:,.0f}"), gib(figure.get("peak_bytes")))
        place = (figure["model"], f"{figure['context']:,}", str(figure["group"]), str(figure["reply"]))
        rows.append((*place, *cells, figure.get("error", ""), card(line), at(line)))
    return table(("model", "context", "group", "reply", "sampled tokens/s", "peak memory", "", "GPU", "commit"), rows)


def trainer(lines: Sequence[Line]) -> str:
    """Return the table of tokens per second, forest beside rows."""
    points: dict[tuple[Any, ...], dict[str, Line]] = defaultdict(dict)
    for line, figure in figures_of(lines):
        points[figure["model"], figure["context"], figure["group"], card(line), at(line)][figure["way"]] = figure
    rows = []
    for (model, context, group, gpu, head), ways in points.items():
        forest = ways.get("forest", {}).get("seconds")
        for way, figure in ways.items():
            cells = (
                number(figure.get("tokens"), "{:,}"),
                number(figure.get("trained_tokens_per_s"), "{:,.0f}"),
                number(figure.get("bf16_share"), "{:.1%}"),
                number(figure["seconds"] / forest if forest and "seconds" in figure else None, "{:.2f}"),
                gib(figure.get("peak_bytes")),
            )
            rows.append((model, f"{context:,}", str(group), way, *cells, figure.get("error", ""), gpu, head))
    heads = (
        "model",
        "context",
        "group",
        "way",
        "tokens",
        "trained tokens/s",
        "bf16 peak",
        "time / forest",
        "peak memory",
        "",
        "GPU",
        "commit",
    )
    return table(heads, rows)


def curves(lines: Sequence[Line]) -> str:
    """Return the table of eval rewards before and after."""
    rows = []
    for line in lines:
        figure = line["figures"][-1]
        cells = []
        for kind in TITLES:
            measured = figure.get("eval", {}).get(kind, {})
            cells += [number(measured.get(when), "{:.3f}") for when in ("before", "after")]
        parts = f"{figure['engine']} / {figure['trainer']}"
        minutes = number(figure["seconds"] / 60 if "seconds" in figure else None, "{:.1f}")
        steps = str(figure.get("steps", "")) + ("" if figure.get("finished") else " (stopped)")
        rows.append((figure["curve"], figure["model"], figure["tasks"], parts, steps, *cells, minutes, card(line), at(line)))
    heads = (
        "curve",
        "model",
        "tasks",
        "engine / trainer",
        "steps",
        "sampled before",
        "after",
        "greedy before",
        "after",
        "minutes",
        "GPU",
        "commit",
    )
    return table(heads, rows)


CURVES = ("demo-", "demo", "math-", "rag-", "text-to-sql-")
SECTIONS: tuple[tuple[str, str, str | tuple[str, ...], Any], ...] = (
    ("Tests", "Tests of the plugins.", "tests-", tests),
    (
        "Exactness",
        "Differences from rows of single transitions in float64: log-probabilities per token, and the relative difference of the "
        "gradient of all parameters. `engine against trainer` compares recorded log-probabilities with recomputed ones.",
        "exactness-",
        exactness,
    ),
    ("Engine", "The torch engine samples a group of replies to one prompt. Time includes the prefill.", "engine-", engine),
    (
        "Trainer",
        "One train step of all parameters on a group of rollouts with four turns. The share of the bf16 peak counts the operations that "
        "`benchmarks/performance/forest.py` describes.",
        "trainer-",
        trainer,
    ),
    ("Learning", "Mean reward on eval tasks, before and after training.", CURVES, curves),
)


def figures_of(lines: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    """Yield every figure with its result."""
    for line in lines:
        for figure in line["figures"]:
            yield line, figure


def number(value: float | None, form: str) -> str:
    """Format a number, or a note that it was not measured."""
    return "not measured" if value is None else form.format(value)


def gib(count: int | None) -> str:
    """Format bytes in GiB."""
    return number(None if count is None else count / 2**30, "{:.1f} GiB")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or an empty text without rows."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines, ""]) if lines else ""


def draw(lines: Sequence[Line], path: Path) -> bool:
    """Draw the curves, one panel each. Return False if there are none."""
    measured = [(line, line["figures"][-1]) for line in lines if line.get("figures") and line["step"].startswith(CURVES)]
    measured = [(line, figure) for line, figure in measured if figure.get("metrics")]
    if not measured:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(measured))
    rows = -(-len(measured) // columns)
    figure: Any = Figure(figsize=(4.6 * columns, 3.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (line, curve) in zip(panels, measured, strict=False):
        for label, name in TITLES.items():
            points = [(row["step"], row[name]) for row in curve["metrics"] if name in row]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linestyle="--" if label == "greedy" else "-", label=label)
        panel.set_title(
            f"{curve['curve']}, {curve['model']}, {curve['tasks']} tasks\n{curve['engine']} / {curve['trainer']}, {card(line)}", fontsize=8
        )
        panel.set(xlabel="training steps", ylabel="eval reward", ylim=(-0.03, 1.03))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8)
    for panel in panels[len(measured) :]:
        panel.set_visible(False)
    figure.savefig(path, format="png")
    return True
