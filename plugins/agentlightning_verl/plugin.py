"""The verl plugin."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_trainers(register: Register) -> None:
    # verl itself may lie in an environment of its own; what is imported here needs nothing that core has not
    register(
        "verl",
        "agentlightning_verl.trainer:VerlTrainer",
        settings="agentlightning_verl.settings:VerlSettings",
        summary="verl's FSDP2 workers under Ray: several GPUs and nodes, or a CPU",
        elsewhere=("verl",),
    )


@hookimpl
def register_checks(register: Register) -> None:
    register("verl", "agentlightning_verl.check:check", summary="can be found")
