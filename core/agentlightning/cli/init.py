"""`agl init` writes a small project: an agent, its reward, tasks, and a config that trains on a CPU."""

from __future__ import annotations

import json
import random
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from agentlightning.errors import ConfigError
from agentlightning.files import disk_errors

Kind = Literal["langgraph", "openai-agents", "autogen", "program"]
EXTRAS: dict[Kind, str] = {
    "langgraph": "langchain,torch",
    "openai-agents": "openai-agents,torch",
    "autogen": "autogen,torch",
    "program": "torch",
}
AGENTS = {"program": 'command = "python3 agent.py"'}
SUFFIX = ".txt"
"""Of the templates, so that no tool takes them for modules of this package."""
THINGS = {
    "train": ["film", "book", "hotel", "meal", "phone", "lamp", "chair", "game", "song", "train", "tour", "cake"],
    "eval": ["museum", "jacket", "concert", "soup"],
}
WORDS = {
    "train": {
        "positive": ["wonderful", "excellent", "delightful", "superb", "amazing", "lovely", "great", "fantastic"],
        "negative": ["terrible", "awful", "dreadful", "horrible", "disappointing", "poor", "bad", "boring"],
    },
    "eval": {"positive": ["brilliant", "perfect", "beautiful", "impressive"], "negative": ["useless", "unpleasant", "annoying", "ugly"]},
}
FRAMES = ("The {thing} was {word}.", "I found the {thing} {word}.")


def init(
    kind: Annotated[Kind, typer.Argument(help="The framework, or a program that only speaks HTTP.")] = "langgraph",
    folder: Annotated[Path, typer.Option(help="Where to write the project.", file_okay=False)] = Path("my-agent"),
) -> None:
    """Write a small project that you can train on a CPU right away: agent, reward, tasks, config, and a test.

    **Examples**

    `agl init` writes a LangGraph project into ./my-agent.

    `agl init program --folder solver` writes a plain program that uses no agent framework.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty. Choose another folder with --folder, because this would overwrite its files.")
    written = project_files(kind)
    with disk_errors("write the project", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            (folder / name).write_text(text)
    console = Console()
    console.print(Text.assemble(f"{kind} project in ", (str(folder), "cyan"), f": {', '.join(sorted(written))}"), soft_wrap=True)
    console.print(f"Next: cd {shlex.quote(str(folder))}, then agl train config.toml", highlight=False)


def project_files(kind: Kind) -> dict[str, str]:
    """Return the files of a project by name."""
    texts: dict[str, str] = {}
    for place in ("shared", kind):
        for template in (files("agentlightning.cli") / "projects" / place).iterdir():
            texts[template.name.removesuffix(SUFFIX)] = template.read_text(encoding="utf-8")
    texts["README.md"] = texts["README.md"].replace("EXTRA", EXTRAS[kind])
    texts["config.toml"] = texts["config.toml"].replace("AGENT", AGENTS.get(kind, 'agent = "agent:solve"'))
    texts["tasks.jsonl"], texts["eval_tasks.jsonl"] = _reviews("train", FRAMES), _reviews("eval", FRAMES[:1])
    return texts


def _reviews(split: Literal["train", "eval"], frames: tuple[str, ...]) -> str:
    """Return a split's reviews as JSON lines; the labels take turns. The splits share no thing and no word, so eval measures more than
    memory."""
    generator = random.Random(0)  # noqa: S311  # not for secrets
    by_label: list[list[dict[str, str]]] = []
    for label, words in WORDS[split].items():
        reviews = [frame.format(thing=thing, word=word) for frame in frames for thing in THINGS[split] for word in words]
        by_label.append([{"review": review, "label": label} for review in generator.sample(reviews, len(reviews))])
    return "".join(json.dumps(task) + "\n" for pair in zip(*by_label, strict=True) for task in pair)
