"""What the rewards of an evaluation depend on, as far as a program can see it.

An evaluation stands in for another one only if all of this is equal: the content of the model's files, the agent, the settings of
rollouts, engine and renderer, the installed packages, the machine, and the code. When in doubt there is no key, or another one.

Code means every module that this process has loaded from outside the installed packages, by its source: all files of its package, or of
its folder if it is in none. Text files there count too, because prompts may be in them, and so do files that a task names by their path.
What an agent reads elsewhere is not seen: a web service, a database of its own, an environment variable.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from agentlightning.config.models import content_key, is_run, model_folder
from agentlightning.config.rewards import RewardTable
from agentlightning.config.schema import Config
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import load_object
from agentlightning.runner.runner import Agent
from agentlightning.training.eval_rollouts import Kind
from agentlightning.training.plan import Plan, TrainingPlan
from agentlightning.types import Task

STARTED = time.time()
"""A file that changed later may differ from the code in memory."""
SOURCES = frozenset(
    {".py", ".pyi", ".so", ".pyd", ".txt", ".md", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".csv", ".tsv", ".sql", ".jinja", ".j2"}
)
MOST_FILES, MOST_BYTES = 5_000, 64 * 2**20
"""Of one package or folder. A larger one is not read, so its evaluations have no key."""
LONGEST_PATH = 256
UPDATES = frozenset(
    {"train", "lora_rank", "lora_alpha", "lr", "weight_decay", "betas", "clip_norm", "critic", "critic_lr", "value_clip", "schedule"}
    | {"warmup_steps", "total_steps", "tokens_per_pack", "seed"}
)
"""Settings of a trainer that act on its updates alone. A fresh LoRA adapter changes no output."""
COPIES = frozenset({"copy_weights"})
"""Settings of an engine that tell how it gets new weights."""

Code = dict[str, str]
"""The hash of each package and folder with loaded code, by its path."""


@dataclass(frozen=True, slots=True)
class EvaluationKey:
    """What an evaluation of a run's model depends on, except for its tasks."""

    kinds: dict[Kind, str]
    """A hash for each kind. Greedy rollouts do not depend on the seed."""
    code: Code


def evaluation_key(config: Config, plan: Plan, tasks: Sequence[Task], prompts: Mapping[str, str]) -> EvaluationKey | None:
    """Return the key of evaluations of a run's model before training, with these prompts; None: it is in doubt. Blocks while it reads the
    model's files."""
    model, agent = model_folder(plan.files.path), _agent_name(plan.agent)
    if model is None or agent is None or not config.runner.imports_agent:
        return None
    code = loaded_code()
    if code is None:
        return None
    files = sorted(file for file in model.rglob("*") if file.is_file())
    names = [str(file.relative_to(model)) for file in files]
    common = {
        "weights": content_key(files, salt="\n".join(names)),
        "agent": agent,
        "arguments": sys.argv[1:] if agent.startswith("__main__:") else [],
        "engine": [_class_name(plan.engine[0]), _without(asdict(plan.engine[1]), COPIES)],
        "number_type": plan.engine[0].number_type(plan.files, plan.engine[1]),
        "trainer": _trainer(plan),
        "rendering": asdict(plan.rendering),
        "runner": asdict(config.runner),
        "reward": _reward(config),
        "prompts": prompts,
        "max_tokens": config.sampling.max_tokens,
        "adapters": config.adapters,
        "models": config.models,
        "machine": [platform.node(), platform.machine(), sys.version],
        "packages": _installed(),
        **_policies(config),
        "files": _named_files(config.eval.chosen(tasks)),
    }
    sampled = {**common, "temperature": config.sampling.temperature, "seed": config.seed}
    return EvaluationKey({"sampled": _hash(sampled), "greedy": _hash(common)}, code)


def loaded_code() -> Code | None:
    """Return the hashes of the code that this process has loaded; None: it is not the code on the disk, or too much to read."""
    code: Code = {}
    for module in list(sys.modules.values()):
        source = _source(module)
        if source is None:
            continue
        if _changed(source):
            return None
        root = _root(source)
        if str(root) not in code:
            digest = code_digest(root)
            if digest is None:
                return None
            code[str(root)] = digest
    return code


def code_digest(root: Path) -> str | None:
    """Return the hash of the sources in a package (with its subfolders) or a folder (without); None: they are too large, or gone."""
    total, files, size = hashlib.sha256(), 0, 0
    try:
        for file in _sources(root):
            files, size = files + 1, size + file.stat().st_size
            if files > MOST_FILES or size > MOST_BYTES:
                return None
            data = file.read_bytes()
            if file.suffix != ".toml" or not _is_run_config(data):
                total.update(f"{file.relative_to(root)}\n{len(data)}\n".encode() + data)
    except OSError:
        return None
    return total.hexdigest() if files else None


def _sources(root: Path) -> Iterator[Path]:
    """Yield the files of code and text, in order. Folders of runs and hidden ones are left out."""
    package = (root / "__init__.py").is_file()
    for folder, folders, files in os.walk(root):
        inside = [name for name in sorted(folders) if name != "__pycache__" and not name.startswith(".")]
        folders[:] = [name for name in inside if not is_run(Path(folder) / name)] if package else []
        yield from (Path(folder) / name for name in sorted(files) if Path(name).suffix in SOURCES)


def _is_run_config(data: bytes) -> bool:
    """Whether a TOML file is the config of a run. Its settings that matter are in the key already."""
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False
    return "model" in table and bool(table.keys() & {"agent", "command", "replay"})


def _source(module: ModuleType) -> Path | None:
    """The file of a module that is part of no installed package; None for any other module."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not os.path.isabs(file) or _is_installed(file):  # torch makes modules of no file
        return None
    path = Path(file).resolve()
    return None if _is_installed(str(path)) else path


def _is_installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file or file.startswith(_libraries())


@cache
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(f"{paths[name]}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))  # `agl` is a script


def _root(source: Path) -> Path:
    """The folder of the outermost package that a module is in, or the module's folder."""
    root = source.parent
    while (root.parent / "__init__.py").is_file():
        root = root.parent
    return root


def _changed(source: Path) -> bool:
    """Whether a file may have changed since its module was loaded."""
    try:
        return source.stat().st_mtime > STARTED
    except OSError:
        return True


def _agent_name(agent: str | Agent | None) -> str | None:
    """`module:function` of an agent that its module alone defines; None for any other, such as a closure or a command."""
    if isinstance(agent, str):
        return agent
    module, name = getattr(agent, "__module__", None), getattr(agent, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    try:
        same = load_object(f"{module}:{name}") is agent
    except (ConfigError, ImportError):
        return None
    return f"{module}:{name}" if same and getattr(sys.modules[module], "__file__", None) else None


def _trainer(plan: Plan) -> list[Any] | None:
    """The trainer and its settings that may act on the weights before the first step; None: the engine loads the model as if alone."""
    if not isinstance(plan, TrainingPlan) or not plan.algorithm.trains_weights:
        return None
    plugin, chosen = plan.trainer
    usual = asdict(type(chosen)())
    settings = {name: value for name, value in _without(asdict(chosen), UPDATES).items() if value != usual[name]}
    return [_class_name(plugin), settings] if settings else None


def _without(settings: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _reward(config: Config) -> Any:
    """What scores the rollouts, with the text of its rubric."""
    if not isinstance(config.reward, RewardTable):
        return config.reward
    judge = config.reward.judge
    return [judge.base_url, judge.model, judge.rubric_text(), judge.scale, judge.sees]


def _policies(config: Config) -> dict[str, Any]:
    """What each policy answers, and its weights before training. Nothing for a run with one policy."""
    folders = {name: policy.weights for name, policy in config.policies.items()}
    files = {name: [] if path is None else _weight_files(Path(path)) for name, path in folders.items()}
    policies = [[name, policy.agents, content_key(files[name])] for name, policy in config.policies.items()]
    return {"policies": policies} if policies else {}


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a LoRA adapter or of a model, without the state of a trainer."""
    return sorted(file for pattern in ("adapter_*", "model*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern))


def _class_name(plugin: Any) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def _installed() -> list[str]:
    """The installed packages, with their versions and the times of their installation."""
    folders = [Path(folder) for folder in dict.fromkeys(sys.path) if Path(folder).is_dir()]
    packages = [entry for folder in folders for entry in folder.iterdir() if entry.suffix in (".dist-info", ".egg-info")]
    return sorted(f"{package.name} {package.stat().st_mtime_ns}" for package in packages)


def _named_files(tasks: Sequence[Task]) -> list[str]:
    """The files that the tasks name, with sizes and times; of a folder, named by its absolute path, the files in it."""
    paths = {Path(text) for task in tasks for text in _texts(task.input) if 0 < len(text) < LONGEST_PATH and text.isprintable()}
    files = {path for path in paths if path.is_file()}
    files |= {file for path in paths if path.is_absolute() and path.is_dir() for file in path.iterdir() if file.is_file()}
    return sorted(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast("dict[str, Any]", value).values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from _texts(item)


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted", enc_hook=str)).hexdigest()
