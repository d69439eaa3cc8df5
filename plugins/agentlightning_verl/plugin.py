"""The verl plugin."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_trainers(register: Register) -> None:
    # verl may have its own environment; this module needs core alone
    register("verl", "agentlightning_verl.trainer:VerlTrainer", summary="verl's FSDP2 workers under Ray: several GPUs and nodes, or a CPU")


@hookimpl
def register_checks(register: Register) -> None:
    register("verl", "agentlightning_verl.check:check", summary="can be found")
