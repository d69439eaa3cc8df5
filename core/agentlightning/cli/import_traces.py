"""`agl store import-traces`: traces of other tools as demonstrations, or as tasks."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentlightning.config.models import find_model
from agentlightning.errors import ConfigError, TaskError
from agentlightning.files import write_file
from agentlightning.records.traces.conversation import ImportedTrace, Unread
from agentlightning.records.traces.demonstrations import Imported, task_of, write_demonstrations
from agentlightning.records.traces.files import TraceReader
from agentlightning.stores.common import open_store


def import_traces(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON files, or files of JSON lines.")],
    to: Annotated[str | None, typer.Option(metavar="STORE", help="Write demonstrations into this store.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that will learn them: its tokenizer writes the tokens.")] = None,
    reward: Annotated[float | None, typer.Option(help="Reward of traces that have no score. Without it, they are not trained.")] = None,
    tasks: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the inputs of the traces as tasks, in JSON lines.")] = None,
) -> None:
    """Import traces of other tools as demonstrations, or as tasks.

    Reads exports of Langfuse (traces with observations, or observations) and LangSmith (runs), OTLP in JSON (GenAI and OpenInference), and
    lines of `{"messages": [...], "tools": [...]}`. The replies are tokenised anew for the model and marked as demonstrated. Everything that
    cannot be read is named with its line and the reason.

    **Examples**

    `agl store import-traces traces.json --to sqlite:demonstrations.db --model smollm2-135m --reward 1` writes demonstrations.

    `agl store import-traces runs.jsonl --tasks tasks.jsonl` writes tasks.
    """
    if to is None and tasks is None:
        raise ConfigError("Nothing says what the traces become. Use --to STORE for demonstrations, or --tasks FILE.")
    if (to is None) != (model is None):
        raise ConfigError("--to and --model belong together: the tokens of demonstrations are those of one model. Use both, or neither.")
    if tasks is not None and tasks.exists():
        raise ConfigError(f"--tasks {tasks} exists. Name a new file.")
    if reward is not None and not math.isfinite(reward):
        raise ConfigError(f"--reward is {reward}. Give a finite number.")
    reader = TraceReader()
    for file in files:
        reader.add(file)
    traces, console = reader.traces(), Console()
    imported = Imported() if to is None or model is None else asyncio.run(_write(traces, to, model, reward))
    for unread in [*reader.unread, *imported.unread]:
        _name(unread)
    if not traces:
        raise TaskError(f"No model call can be read in {', '.join(map(str, files))}. Use one of the formats of docs/teachers.md.")
    if tasks is not None:
        lines = [json.dumps({"id": task.id, "input": task.input}, ensure_ascii=False) for task in map(task_of, traces)]
        write_file(tasks, "".join(f"{line}\n" for line in lines).encode())
        console.print(f"Wrote {len(traces):,} tasks to {tasks}.", soft_wrap=True, highlight=False)
    if to is not None:
        console.print(_summary(imported, to), soft_wrap=True, highlight=False)


async def _write(traces: list[ImportedTrace], to: str, model: str, reward: float | None) -> Imported:
    files = await asyncio.to_thread(find_model, model, weights=False)
    store = open_store(to)
    try:
        return await write_demonstrations(traces, store, files, reward=reward)
    finally:
        await store.close()


def _name(unread: Unread) -> None:
    Console(stderr=True).print(f"Not imported: {unread.where}: {unread.reason}", soft_wrap=True, highlight=False, markup=False)


def _summary(imported: Imported, to: str) -> str:
    text = f"Imported {imported.rollouts:,} traces with {imported.calls:,} replies into {to}."
    if imported.present:
        text += f" {imported.present:,} were there already" + (f", {imported.scored:,} now have a reward." if imported.scored else ".")
    if imported.unscored:
        text += f" {imported.unscored:,} have no reward, so they are not trained. Add --reward, or score them with `agl score`."
    return text
