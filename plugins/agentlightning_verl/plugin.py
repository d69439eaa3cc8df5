"""Registers the verl trainer."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_trainers(register: Register) -> None:
    # verl may be installed in another environment, so this module imports only core's dependencies
    register(
        "verl",
        "agentlightning_verl.trainer:VerlTrainer",
        settings="agentlightning_verl.settings:VerlSettings",
        summary="trains on verl's FSDP2 workers under Ray: several GPUs and nodes, or a CPU",
        elsewhere=("verl",),
    )


@hookimpl
def register_checks(register: Register) -> None:
    register("verl", "agentlightning_verl.check:check", summary="can be found")
