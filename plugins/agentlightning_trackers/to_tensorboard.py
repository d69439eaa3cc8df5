"""Shows a run in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tensorboardX import SummaryWriter

from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker
from agentlightning.types import JSON
from agentlightning_trackers.settings import TensorBoardSettings
from agentlightning_trackers.tables import EVALUATION, evaluation_rows, grouped, numbers, texts


class TensorBoardTracker(Tracker):
    """Event files. A resumed run removes the steps that it repeats."""

    Settings = TensorBoardSettings
    advice = "Check the folder of its event files."
    replaces_steps = True

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    @classmethod
    def create(cls, run: TrackedRun, settings: TensorBoardSettings) -> TensorBoardTracker:
        own = run.folder / "tensorboard"
        folder = own if settings.folder is None else run.folder.parent / settings.folder / run.folder.name
        writer = SummaryWriter(str(folder), purge_step=run.next_step)
        writer.add_text("config", _code(json.dumps(run.config, indent=2, ensure_ascii=False)), run.next_step)
        writer.flush()
        return cls(writer)

    def log(self, metrics: Mapping[str, JSON]) -> None:
        step = int(metrics["step"])
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(grouped(name), value, step)
        for name, text in texts(metrics).items():
            self._writer.add_text(grouped(name), _code(text), step)
        self._writer.flush()

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        rows = [EVALUATION, ["---"] * len(EVALUATION), *evaluation_rows(step, tasks)]
        self._writer.add_text("evaluation", "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows), step)

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        for place, rollout in enumerate(rollouts):
            head = f"{rollout.id}, reward {'none' if rollout.reward is None else f'{rollout.reward:g}'}: {rollout.task}"
            self._writer.add_text(f"rollouts/{place}", _code(f"{head}\n\n{rollout.text}"), step)

    def close(self, end: RunEnd) -> None:
        self._writer.close()


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _code(text: str) -> str:
    """A text that Markdown shows as it is: each line is indented."""
    return "\n".join(f"    {line}" for line in text.splitlines())
