"""The vLLM plugin."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_engines(register: Register) -> None:
    # vLLM may have its own environment; this process reads the model's configuration
    register(
        "vllm",
        "agentlightning_vllm.engine:VllmEngine",
        settings="agentlightning_vllm.settings:VllmSettings",
        summary="serves through vLLM: on GPUs, several replicas, or on a CPU",
        extra="serve",
        needs=("transformers",),
        elsewhere=("vllm",),
    )


@hookimpl
def register_commands(register: Register) -> None:
    register("engines", "agentlightning_vllm.command:app", summary="Install engines that need their own environment.")


@hookimpl
def register_checks(register: Register) -> None:
    register("vllm", "agentlightning_vllm.check:check", summary="can be imported")
