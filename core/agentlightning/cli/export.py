"""`agl export` and `agl push`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from agentlightning.config.models import is_run
from agentlightning.errors import ConfigError
from agentlightning.training.run_folder import RunFolder

if TYPE_CHECKING:
    from agentlightning.serving.export import Exported

PolicyOption = Annotated[str | None, typer.Option("--policy", metavar="NAME", help="The policy, of a run with several.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or `latest`: the newest training run.")]


def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the model.")],
    policy: PolicyOption = None,
) -> None:
    """Write the best weights of a run as a model folder that other programs load, with a model card.

    The folder holds the merged weights, the tokenizer, the chat template, and the generation config. README.md is a model card with
    results, curves, data, settings, and the licence of the model before training.

    **Examples**

    `agl export latest my-model` exports the last run. `agl serve my-model` serves the folder, `from_pretrained` loads it, and
    `model = "my-model"` trains it further.
    """
    from agentlightning.serving.export import export_run

    _print(export_run(_run(run), folder, policy), Console())


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, `latest`, or a folder that `agl export` wrote.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository. It is created if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Otherwise only its owner sees it.")] = False,
    policy: PolicyOption = None,
) -> None:
    """Upload the best weights of a run, or an exported folder, to the Hugging Face hub.

    A new repository is private. Log in first with `hf auth login`, or set `HF_TOKEN`.

    **Examples**

    `agl push latest me/my-agent-model` exports and uploads the last run.

    `agl push my-model me/my-agent-model --public` uploads an exported folder, with its README.md as you edited it.
    """
    from agentlightning.serving.export import export_run
    from agentlightning.serving.hub import check_exported, check_hub_access, push_folder

    if name.count("/") != 1:
        raise ConfigError(f"{name!r} is no name of a repository. Use OWNER/NAME.")
    check_hub_access()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="agl-push-") as temporary:
        folder = Path(run)
        if not folder.is_dir() or is_run(folder):
            folder = Path(temporary) / "model"
            _print(export_run(_run(run), folder, policy), console, uploads=True)
        elif policy is not None:
            raise ConfigError(f"--policy is {policy!r}, but {run} is an exported folder of one policy. Leave it out.")
        else:
            check_exported(folder)
        console.print(f"uploaded to {push_folder(folder, name, public=public)}", soft_wrap=True, highlight=False)


def _run(name: str) -> RunFolder:
    return RunFolder.latest_training() if name == "latest" else RunFolder.open(name)


def _print(exported: Exported, console: Console, *, uploads: bool = False) -> None:
    weights = f"weights of step {exported.step}" if exported.step else "weights of the model before training"
    console.print(Text(f"{weights}. {exported.reason}".strip()), soft_wrap=True)
    if exported.origin.licence == "unknown":
        console.print(Text(f"The licence of {exported.origin.name} is unknown. Check it before you share.", "yellow"), soft_wrap=True)
    if not uploads:
        console.print(f"exported to {exported.folder}", soft_wrap=True, highlight=False)
