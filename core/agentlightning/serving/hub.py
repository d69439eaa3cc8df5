"""`agl push`: a model folder as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from agentlightning.config.models import weights_problem
from agentlightning.errors import ConfigError, MissingExtra, RunError

FOREIGN = ("trainer.safetensors", "trainer.json", "run_state.json", "config.toml", "state.json", "result.json", ".git")
"""Names of a checkpoint, a run, or a repository."""


def check_hub_access() -> None:
    """Raise `ConfigError` if there is no token for the hub, and `MissingExtra` without its library."""
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        raise MissingExtra("`agl push` needs huggingface_hub, which is not installed. Run: pip install 'agentlightning[serve]'") from error
    if constants.is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it.")
    if get_token() is None:
        raise ConfigError("There is no token for the Hugging Face hub. Run `hf auth login`, or set HF_TOKEN.")


def check_exported(folder: Path) -> None:
    """Raise `ConfigError` for a folder that `agl export` did not write: it may hold records, or the state of a trainer."""
    if (folder / "config.json").is_file() and weights_problem(folder) is None:
        inner = {file.name for file in folder.rglob("*")}
        foreign = sorted(name for name in inner if name in FOREIGN or name.endswith((".db", ".jsonl")))
        if not foreign:
            return
        problem = f"it has {foreign[0]}"
    else:
        problem = "it has no model"
    raise ConfigError(
        f"{str(folder)!r} is no folder that `agl export` wrote: {problem}. Name a run, or export the run and push that folder."
    )


def push_folder(folder: Path, name: str, *, public: bool) -> str:
    """Upload a model folder to the repository `owner/name`, which is made if it does not exist, and return its address. A repository
    that exists stays private or public. Raises `RunError` if the hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(library_name="agentlightning")
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Upload model")
    except HFValidationError as error:
        raise ConfigError(f"{name!r} is no name of a repository: {error} Use OWNER/NAME.") from error
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).split("\n")[0]
        raise RunError(f"The hub refused {name}: {reason}. Check that your token may write there (`hf auth whoami`).") from error
    except Exception as error:  # of the HTTP library of the hub's client, which differs by its version
        raise RunError(
            f"{api.endpoint} cannot be reached: {error}. Check the network, and push again: files that are there stay."
        ) from error
    return str(repository)
