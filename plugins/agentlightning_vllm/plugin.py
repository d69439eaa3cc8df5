"""Registers the vLLM engine and `agl engines`."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_engines(register: Register) -> None:
    # vLLM may be installed in another environment; this process reads only the model's config
    register(
        "vllm",
        "agentlightning_vllm.engine:VllmEngine",
        settings="agentlightning_vllm.settings:VllmSettings",
        summary="serves with vLLM, in one or more replicas, on GPUs or a CPU",
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
