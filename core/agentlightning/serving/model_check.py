"""What a run would do with a model, found out without its weights: sizes, renderer, and the engines and trainers that take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentlightning.config.model_facts import BYTES_CPU, BYTES_FROZEN, BYTES_FULL, ModelFacts, model_facts
from agentlightning.config.models import FetchProgress, find_model, find_run, is_model, weights_problem
from agentlightning.contracts.model import Fit, ModelFiles
from agentlightning.contracts.rendering import RenderingSettings, saved_rendering
from agentlightning.errors import LightningError
from agentlightning.gateway.rendering.report import RenderingReport, report_rendering
from agentlightning.registry.registry import Entry, registry
from agentlightning.serving.doctor import Machine, machine
from agentlightning.training.recorded import run_rendering
from agentlightning.training.run_folder import RunFolder

SHARE = 0.8
"""Fraction of a memory that parameters may fill."""
NOT_FOR_CHECK = ("upstream",)
"""An engine whose models are elsewhere."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine or a trainer, and whether it takes the model."""

    kind: str
    """`engine` or `trainer`."""
    name: str
    fit: Fit


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Everything that `agl models check` prints."""

    files: ModelFiles
    facts: ModelFacts
    machine: Machine
    rendering: RenderingReport | None
    problem: str
    """Why the model cannot render messages; empty if it can."""
    backends: tuple[Backend, ...]
    weights_problem: str | None = None
    """What is wrong with the weights; None: nothing, or they are elsewhere."""

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine.gpus)

    @property
    def serve_bytes(self) -> int | None:
        """Weights of an engine on this machine: 16 bits on a GPU, float32 on a CPU."""
        count = self.facts.parameters
        return None if count is None else count * (BYTES_FROZEN if self.on_gpu else BYTES_CPU)

    @property
    def lora_bytes(self) -> int | None:
        """Weights, and the gradients and moments of an adapter, on this machine."""
        serve, adapter = self.serve_bytes, self.facts.adapter
        return None if serve is None or adapter is None else serve + adapter * BYTES_FULL

    @property
    def full_bytes(self) -> int | None:
        """Weights, gradients and moments when all weights are trained."""
        return None if self.facts.parameters is None else self.facts.parameters * BYTES_FULL

    def memory_note(self, needed: int, *, serving: bool) -> str:
        """Whether this machine has the memory, and the way out if not."""
        room = max((gpu.memory for gpu in self.machine.gpus), default=self.machine.memory or 0)
        if not room:
            return ""
        place = f"{room / 1e9:.0f} GB of {'the GPU' if self.on_gpu else 'this machine (no GPU, float32)'}"
        if needed <= SHARE * room:
            return f"fits the {place}"
        way_out = "Serve it with engine 'vllm' on more GPUs" if serving else "Set trainer.train = 'lora' or 'top:N', use trainer 'verl'"
        return f"too large for the {place}. {way_out}, or take a smaller model"


def check_model(name: str, *, progress: FetchProgress | None = None) -> ModelReport:
    """Check a model by any name that `find_model` takes. Raises `ConfigError` for one that transformers does not know."""
    progress = progress or (lambda what, part: None)
    files = find_model(name, progress=progress, weights=False)
    progress("reading the model", None)
    facts = model_facts(files.path)
    rendering, problem = None, ""
    try:
        rendering = report_rendering(files.name, files.path, _rendering(name, Path(files.path)))
    except LightningError as error:
        problem = str(error)
    progress("trying engines and trainers", None)
    folder = Path(name).expanduser()
    weights = weights_problem(folder) if (folder / "config.json").is_file() else None
    return ModelReport(files, facts, machine(), rendering, problem, tuple(_backends(files)), weights)


def _rendering(name: str, folder: Path) -> RenderingSettings:
    """The settings of the renderer beside a model, or those of a run."""
    run = None if is_model(name) else find_run(name)
    return saved_rendering(folder) if run is None else run_rendering(RunFolder(run), folder)


def _backends(files: ModelFiles) -> Iterator[Backend]:
    for kind in ("engines", "trainers"):
        for entry in registry().entries(kind):
            if entry.name not in NOT_FOR_CHECK:
                yield Backend(entry.what, entry.name, _fit(entry, files))


def _fit(entry: Entry, files: ModelFiles) -> Fit:
    if entry.missing:
        return Fit("unknown", f"not installed here. Run: {entry.install}")
    if entry.not_here:
        return Fit("unknown", "not installed here. See `agl doctor`")
    try:
        return entry.load().check_model(files)
    except LightningError as error:
        return Fit("unknown", str(error))
