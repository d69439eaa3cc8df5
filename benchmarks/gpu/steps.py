"""The measurements, in order of value. Each is a script of this folder, which makes its sizes small where `AGL_GPU_DRY` is set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MODELS = ("smollm2", "qwen05")
BENCHMARKS = {"math": "gsm8k", "text-to-sql": "spider", "rag": "musique"}
"""And the folder of its real tasks."""


@dataclass(frozen=True)
class Step:
    """One measurement: a command that leaves `figures.jsonl` in its working folder, one JSON object a line, each written at once."""

    name: str
    title: str
    command: tuple[str, ...]
    """Arguments for Python; the command runs in OUT/steps/NAME."""
    minutes: float
    """Time limit over all calls."""
    parcels: tuple[str, ...] = ()
    """Without these it is skipped."""
    module: str | None = None
    """Skipped where this is not installed."""


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"{{gpu}}/{name}.py", *arguments)


def steps() -> Iterator[Step]:
    """All of them."""
    yield Step("tests-torch", "tests of the torch plugin", script("plugin_tests", "torch"), minutes=6)
    yield Step("tests-vllm", "tests of the vLLM engine", script("plugin_tests", "vllm"), minutes=12, module="vllm")
    yield Step("tests-verl", "tests of the verl trainer", script("plugin_tests", "verl"), minutes=12, module="verl")
    for model in MODELS:
        yield Step(f"model-{model}", "convert the model", script("models", model), minutes=4, parcels=(model,))
    for model in MODELS:
        yield Step(f"exactness-{model}", "forest, rows and engine against float64", script("exactness", model), minutes=3, parcels=(model,))
    for model in MODELS:
        yield Step(f"engine-{model}", "tokens/s of the torch engine", script("engine_speed", model), minutes=4, parcels=(model,))
        yield Step(f"trainer-{model}", "tokens/s of the torch trainer", script("trainer_speed", model), minutes=6, parcels=(model,))
    yield Step("demo", "learning curve of the demo", script("curves", "demo", "smollm2"), minutes=5, parcels=("smollm2",))
    for model in reversed(MODELS):
        for benchmark, data in BENCHMARKS.items():
            command = script("curves", benchmark, model, "--data", "{parcels}/data/" + data)
            yield Step(f"{benchmark}-{model}", f"learning curve of {benchmark}", command, minutes=15, parcels=(model, "data"))
    for part, name in (("engine", "vllm"), ("trainer", "verl")):
        for curve in ("demo", *BENCHMARKS):
            real = () if curve == "demo" else ("--data", "{parcels}/data/" + BENCHMARKS[curve])
            command = script("curves", curve, "smollm2", f"--{part}", name, *real)
            parcels = ("smollm2", "data") if real else ("smollm2",)
            yield Step(f"{curve}-{name}", f"learning curve of {curve} with {name}", command, minutes=15, parcels=parcels, module=name)


STEPS = tuple(steps())
