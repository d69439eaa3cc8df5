"""What the vLLM plugin registers."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_engines(register: Register) -> None:
    # vLLM itself may lie in an environment of its own; what is needed here is the model's configuration
    register(
        "vllm",
        "agentlightning_vllm.engine:VllmEngine",
        settings="agentlightning_vllm.settings:Settings",
        summary="serves through vLLM: on GPUs, several replicas, or on a CPU",
        extra="serve",
        needs=("transformers",),
    )


@hookimpl
def register_commands(register: Register) -> None:
    register("engines", "agentlightning_vllm.command:app", summary="Install engines that need an environment of their own.")


@hookimpl
def register_checks(register: Register) -> None:
    register("vllm", "agentlightning_vllm.check:check", summary="can be imported")
