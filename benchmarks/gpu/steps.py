"""The measurements, most valuable first. Each is a script of this folder that uses toy sizes if `AGL_GPU_DRY` is set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MODELS = ("smollm2", "qwen05")
BENCHMARKS = {"math": "gsm8k", "text-to-sql": "spider", "rag": "musique"}
"""Benchmarks with the folder of their real tasks."""


@dataclass(frozen=True)
class Step:
    """A measurement: a command that appends JSON lines to `figures.jsonl` in its working folder."""

    name: str
    title: str
    command: tuple[str, ...]
    """Arguments for Python. The command runs in OUT/steps/NAME."""
    minutes: float
    """Time limit over all calls."""
    parcels: tuple[str, ...] = ()
    """Parcels that the step needs."""
    module: str | None = None
    """A package that the step needs."""


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"{{gpu}}/{name}.py", *arguments)


def steps() -> Iterator[Step]:
    """Return all steps."""
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
