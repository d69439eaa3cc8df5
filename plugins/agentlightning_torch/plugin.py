"""Registers the torch engine, trainer, models, and converters."""

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("torch", "transformers", "peft", "safetensors")


@hookimpl
def register_engines(register: Register) -> None:
    register(
        "torch",
        "agentlightning_torch.engine:TorchEngine",
        settings="agentlightning_torch.settings:TorchEngineSettings",
        summary="serves the trainer's own weights in this process, on a CPU or one GPU",
        extra="torch",
        needs=NEEDS,
    )


@hookimpl
def register_trainers(register: Register) -> None:
    register(
        "torch",
        "agentlightning_torch.trainer:TorchTrainer",
        settings="agentlightning_torch.settings:TorchTrainerSettings",
        summary="trains all weights, the top layers, or LoRA in this process, on a CPU or one GPU",
        extra="torch",
        needs=NEEDS,
    )


@hookimpl
def register_models(register: Register) -> None:
    register(
        "smollm2-135m",
        "agentlightning_torch.models:fetch_smollm2_135m",
        summary="SmolLM2-135M-Instruct (Apache-2.0), a 93 MB download; small enough to train on a CPU",
        extra="torch",
        needs=(*NEEDS, "gguf"),
    )


@hookimpl
def register_converters(register: Register) -> None:
    for name, target, summary, needs in (
        ("gguf", "conversion:convert_gguf", "dequantises a GGUF file", (*NEEDS, "gguf")),
        ("lora", "conversion:merge_adapter", "merges a LoRA adapter into its base", NEEDS),
        ("shapes", "miniature:shapes", "builds a model without weights, to count its parameters", NEEDS),
    ):
        register(name, f"agentlightning_torch.{target}", summary=summary, extra="torch", needs=needs)


@hookimpl
def register_checks(register: Register) -> None:
    register("torch", "agentlightning_torch.check:check", summary="samples, takes a step", extra="torch", needs=(*NEEDS, "renderers"))
