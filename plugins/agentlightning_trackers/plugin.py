"""Registers the trackers. Cheap to import: each imports its library on first use."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_trackers(register: Register) -> None:
    for name, title, tracker, needs in (
        ("mlflow", "an MLflow server or a local database", "MLflow", ("mlflow",)),
        ("tensorboard", "TensorBoard event files", "TensorBoard", ("tensorboard", "tensorboardX")),
        ("trackio", "Trackio, on this machine", "Trackio", ("trackio",)),
        ("wandb", "Weights & Biases; offline without an API key", "Wandb", ("wandb",)),
    ):
        register(
            name,
            f"agentlightning_trackers.to_{name}:{tracker}Tracker",
            settings=f"agentlightning_trackers.settings:{tracker}Settings",
            summary=title,
            extra=name,
            needs=needs,
        )
