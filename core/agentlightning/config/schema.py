"""What `agl train CONFIG.toml` reads, and what a run folder keeps of it.

Everything that can be wrong is said before a model loads. Tables of plugins (`algorithm`, `engine`, `trainer`) stay as they were written
until their class is there; `agentlightning.config.tables` builds them.
"""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import tomli_w

from agentlightning.config.tables import bind, build, build_loss, build_step_rewards, naming, open_table
from agentlightning.config.tasks import is_reference
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import Registry, registry
from agentlightning.types import JSON

__all__ = [
    "CheckpointConfig",
    "CollectionConfig",
    "Config",
    "EvalConfig",
    "ReplayConfig",
    "SamplingConfig",
    "bind",
    "build",
    "build_loss",
    "load_config",
    "naming",
    "open_table",
    "store_file",
    "to_toml",
]


RewardFrom = Literal["stdout", "exit_code", "file", "post"]
"""Where the reward of a command comes from.

`stdout`: the last line that it prints, a number or a JSON object with a `reward`. `file`: the same, as the last line of the file that
`AGL_REWARD_FILE` names. `exit_code`: 1 for exit code 0, and 0 for 1 to 125 (as test programs end; others say that it could not run, or
crashed). `post`: it sends the same by POST to `AGL_REWARD_URL`, with `OPENAI_API_KEY` as the bearer token.
"""


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How rollouts are run."""

    concurrency: int = 32
    """Rollouts under way at once, in each process."""
    timeout: float = 300.0
    """Seconds that one attempt may take."""
    workers: int = 0
    """Worker processes; 0: in this process. Agents that block or crash want workers."""
    attempts: int = 3
    """Attempts made at most for one rollout."""
    on_failure: Literal["retry", "drop", "penalise"] = "retry"
    """What becomes of an attempt whose agent raised or hung: tried again (and dropped when no attempt is left), left out of training,
    or trained on with the reward `penalty`."""
    penalty: float = 0.0
    lease: float = 60.0
    """Seconds after which the attempt of a runner that no longer answers is given to another."""

    def __post_init__(self) -> None:
        for key, least in {"concurrency": 1, "workers": 0, "attempts": 1}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"runner.{key} is {getattr(self, key)}; it must be at least {least}")
        for key in ("timeout", "lease"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"runner.{key} is {getattr(self, key)}; it must be a number of seconds above 0")
        if self.on_failure not in ("retry", "drop", "penalise"):
            raise ConfigError(f"runner.on_failure is {self.on_failure!r}; it must be 'retry', 'drop' or 'penalise'")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How training and sampled evaluation sample; it overrides what the agent asks."""

    temperature: float = 1.0
    max_tokens: int | None = None
    """Tokens of one reply at most; absent: as the agent asks, up to the model's context."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"sampling.temperature is {self.temperature}; it must be above 0 (1.0 is usual), for a greedy reply teaches nothing"
            )
        _at_least("sampling", self, max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on `eval_tasks`, before the first step and after the last, and in between."""

    every: int = 5
    """Steps between two evaluations; 0: only before and after."""
    tasks: int | None = None
    """The first so many; absent: all."""
    samples: int = 1
    """Sampled rollouts of each task; 0: none."""
    greedy: bool = True
    """One greedy rollout of each task as well."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a better sampled reward; absent: never."""

    def __post_init__(self) -> None:
        _at_least("eval", self, every=0, tasks=1, samples=0, patience=1)
        if not self.samples and not self.greedy:
            raise ConfigError("eval.samples is 0 and eval.greedy is false; leave eval_tasks out where nothing is to be evaluated")
        if self.patience is not None and not self.every:
            raise ConfigError("eval.patience counts evaluations during training, and eval.every = 0 has none; set every")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which stay on disk. One is always written after the last step, and when a run is stopped."""

    every: int = 10
    """Steps between two checkpoints; 0: only at the end."""
    best: bool = True
    """Write and keep the one with the best eval reward."""
    last: int = 2
    """The newest so many stay; one at least, to resume from."""
    keep_every: int | None = None
    """Those of every so many steps stay as well."""

    def __post_init__(self) -> None:
        _at_least("checkpoints", self, every=0, last=1, keep_every=1)


@dataclass(frozen=True, kw_only=True)
class CollectionConfig:
    """Which rollouts make up a step, and which of their replies are trained."""

    max_staleness: int = 0
    """Steps of training that may lie between sampling a token and training it. 0: a step's rollouts begin after the step before it. Above
    0 rollouts go on while the trainer steps, with as many groups ahead, and the engine has weights of its own, which change under running
    agents; replies with an older token are left out and counted."""
    filter: JSON = None
    """Which groups are kept, by a filter: `nonzero_variance` (rewards differ), `difficulty` (`{name = "difficulty", low = 0.1, high =
    0.9}`), or a custom function; absent: all. What is filtered is not trained, and counts among the scored rollouts."""
    resample: int = 0
    """Groups at most that a step starts in place of those filtered."""
    truncated: Literal["train", "drop"] = "train"
    """What becomes of replies that a limit of tokens cut off. (To penalise them, give them a reward.)"""
    overlong: Literal["error", "drop"] = "error"
    """What becomes of a conversation longer than the trainer takes (`trainer.tokens_per_pack`): the run stops with an error, or its replies
    beyond are left out and counted. One longer than the model's context is refused at the gateway, and is the agent's failure
    (`runner.on_failure`)."""

    def __post_init__(self) -> None:
        _at_least("collection", self, max_staleness=0, resample=0)
        for key, choices in {"truncated": ("train", "drop"), "overlong": ("error", "drop")}.items():
            if getattr(self, key) not in choices:
                raise ConfigError(f"collection.{key} is {getattr(self, key)!r}; expected {' or '.join(map(repr, choices))}")
        if self.resample and self.filter is None:
            raise ConfigError(f'collection.resample is {self.resample}, and nothing is filtered; set collection.filter = "signal"')


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The store of a deployed agent, whose rollouts a run trains on (`agentlightning.training.production`)."""

    store: str
    """Its address, as `agl serve` and `agl.rollout` have it. It is only read."""
    wait: bool = False
    """Wait for rollouts and rewards that are still to come; otherwise the run ends when nothing is left to train."""

    def __post_init__(self) -> None:
        scheme, _, rest = self.store.partition("://")
        if scheme in ("http", "https") and "@" in rest.partition("/")[0]:
            raise ConfigError("replay.store has a token in it, and a run keeps its configuration; leave it out, and set AGL_TOKEN to it")

    def under(self, base: Path) -> ReplayConfig:
        """The same, with the path of a store file made absolute."""
        file = store_file(self.store)
        return self if file is None else replace(self, store=f"sqlite:{base / file}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run."""

    agent: str | None = None
    """`module:function`, called with `(task, llm)`. Either this or `command`; with a `replay` only for `eval_tasks`."""
    command: str | None = None
    """A command line that is run for each rollout; a program in any language. See `agentlightning.runner.program`."""
    reward: RewardFrom = "stdout"
    """Where a command's reward comes from: the last line that it prints, its exit code, the file `AGL_REWARD_FILE`, or a POST."""
    tasks: str | None = None
    """A `.jsonl` or `.json` file, or `module:attribute`. Either this or `replay`."""
    replay: ReplayConfig | None = None
    """Train on the rollouts of a deployed agent."""
    model: str
    """A registered model, a folder, or the id of a hub."""
    eval_tasks: str | None = None
    name: str = "run"
    """Part of the run folder's name."""
    seed: int = 0
    steps: int = 10
    tasks_per_step: int = 8
    sampler: str = "epochs"
    adapters: tuple[str, ...] = ()
    """Framework adapters to install, for an agent without a callback."""
    models: tuple[str, ...] = ()
    """Names, or patterns (`gpt-4o*`), by which the agent's code asks for the model in training, where it names another one."""
    agents: tuple[str, ...] | None = None
    """Names or patterns of the agents to train; absent: all."""
    reward_weights: dict[str, float] = field(default_factory=dict[str, float])
    """What the rewards of each name weigh in the outcome; a name that is not here weighs 1."""
    step_rewards: dict[str, float] = field(default_factory=dict[str, float])
    """What a step earns that shows a fact: by the fact's name (`tool_failed`), or `module:function`."""
    algorithm: dict[str, JSON] = field(default_factory=lambda: {"name": "lightning"})
    engine: dict[str, JSON] = field(default_factory=lambda: {"name": "torch"})
    trainer: dict[str, JSON] = field(default_factory=lambda: {"name": "torch"})
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    trackers: tuple[str, ...] = ("jsonl",)
    mismatch_alarm: float = 0.05
    """Mean difference in log-probability between engine and trainer, per sampled token, above which an alarm is raised."""
    port: int = 0
    """Of the gateway; 0: a free one."""
    folder: str = "runs"
    """Where run folders are made."""
    path: str | None = None
    """Folder from which the modules named here are imported, and in which a command runs; absent: the configuration file's."""

    def __post_init__(self) -> None:
        _at_least("", self, seed=0, steps=1, tasks_per_step=1, port=0, mismatch_alarm=0)
        for table in ("algorithm", "engine", "trainer"):
            if not isinstance(getattr(self, table).get("name"), str):
                raise ConfigError(f"missing 'name' in [{table}]; expected text, as in {table} = {{ name = \"...\" }}")
        if self.agents is not None and not self.agents:
            raise ConfigError("agents is an empty list, so nothing would be trained; name an agent, or leave it out to train all")
        if not self.name or any(each in self.name for each in "/\\\0"):
            raise ConfigError(f"name is {self.name!r}; it becomes part of a folder's name, so it must not be empty or contain a slash")
        self._check_source()
        self._check_agent()
        for key, weight in self.reward_weights.items():
            if not math.isfinite(weight):
                raise ConfigError(f"reward_weights.{key} is {weight}; expected a finite number")

    def _check_source(self) -> None:
        if self.replay is None:
            if self.tasks is None:
                raise ConfigError("missing 'tasks' at the top level; expected text (or a [replay], a store that a deployed agent fills)")
            return
        for key, given in {"tasks": self.tasks is not None, "sampler": self.sampler != "epochs"}.items():
            if given:
                raise ConfigError(f"{key} and replay are both given; with replay the tasks are those of its rollouts, so leave {key} out")
        for key, idle in {"max_staleness": 0, "filter": None, "resample": 0}.items():
            if getattr(self.collection, key) != idle:
                said = f"collection.{key} is {getattr(self.collection, key)!r}"
                raise ConfigError(f"{said}, and with replay nothing is started or filtered; leave it out")
        acts = "agent" if self.agent is not None else "command" if self.command is not None else None
        if acts is None and self.eval_tasks is not None:
            raise ConfigError('eval_tasks is given, and no agent that would act on them; give agent = "module:function", or leave it out')
        if acts is not None and self.eval_tasks is None:
            raise ConfigError(f"{acts} is given, and with replay it acts on eval_tasks alone; give eval_tasks, or leave {acts} out")

    def _check_agent(self) -> None:
        if self.replay is not None and self.agent is None and self.command is None:
            return
        if (self.agent is None) == (self.command is None):
            both = "agent and command are both given" if self.agent else "missing 'agent' at the top level"
            raise ConfigError(f'{both}; expected agent = "module:function", or command = "..." for a program, and not both')
        if self.agent is not None and ":" not in self.agent:
            raise ConfigError(f"agent is {self.agent!r}; expected 'module:function'")
        if self.reward not in get_args(RewardFrom):
            raise ConfigError(f"reward is {self.reward!r}; expected {' or '.join(map(repr, get_args(RewardFrom)))}")
        if self.agent is not None and self.reward != "stdout":
            raise ConfigError(f"reward is {self.reward!r}, which says where a command's reward comes from; an agent returns its own")
        if self.command is not None:
            for key, given in {"adapters": self.adapters, "agents": self.agents}.items():
                if given:
                    raise ConfigError(f"{key} is {list(given)}, and a command is a process of its own: no adapter names its agents")
            if self.runner.workers:
                raise ConfigError(f"runner.workers is {self.runner.workers}; a command runs in processes of its own, so leave it out")


def load_config(path: str | Path, plugins: Registry | None = None) -> Config:
    """Read and check a configuration file. Paths in it are relative to the file's folder, and absolute in the result.

    Names of plugins and the keys of the algorithm are checked here; those of engine and trainer by `open_table`, whose classes are heavy
    to import. Raises `ConfigError`, which names the file.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    with naming(path):
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"not TOML: {error}") from error
        config = build(Config, {"name": path.stem, **data})
        import_from(path.resolve().parent / (config.path or ""))
        check_names(config, plugins)
        return _absolute(config, path.resolve().parent, data)


def check_names(config: Config, plugins: Registry | None = None) -> None:
    """Whether every plugin that is named is known, and the algorithm's settings fit it. Imports no engine and no trainer."""
    plugins = plugins or registry()
    for key, kind in {"engine": "engines", "trainer": "trainers"}.items():
        with _at(key):
            name = getattr(config, key)["name"]
            if ":" not in name:
                plugins.entry(kind, name)
    for key, kind in {"adapters": "adapters", "trackers": "trackers"}.items():
        for name in getattr(config, key):
            with _at(key):
                plugins.entry(kind, name)
    with _at("sampler"):
        plugins.load("samplers", config.sampler)
    if config.collection.filter is not None:
        bind("filters", config.collection.filter, where="collection.filter", plugins=plugins)
    with _at("algorithm"):
        algorithm = plugins.load("algorithms", config.algorithm["name"])
    table = dict(config.algorithm)
    if "name" not in {each.name for each in fields(algorithm)}:
        del table["name"]
    built = build(algorithm, table, "algorithm")
    if config.replay is not None and algorithm.trains_demonstrations:
        raise ConfigError(
            f"algorithm {config.algorithm['name']!r} trains demonstrations that it gives while an agent runs, and the replies of a replay "
            "were sampled; use an algorithm that trains those (lightning), or leave replay out"
        )
    built.parts()
    build_step_rewards(config.step_rewards, plugins)
    if config.step_rewards and (why := built.ignores_step_rewards) is not None:
        raise ConfigError(f"step_rewards ({', '.join(config.step_rewards)}) would change nothing: {why}")


def to_toml(config: Any) -> str:
    """A configuration (or any dataclass of settings) as TOML that `build` reads back equal."""
    return tomli_w.dumps(_plain(config))


def _plain(value: Any, at: str = "") -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
        absent = {each.name for each in fields(value) if each.default is None and named.get(each.name) is None}
        return {name: _plain(each, f"{at}.{name}" if at else name) for name, each in named.items() if name not in absent}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{at}.{k}") for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{at}[{number}]") for number, each in enumerate(cast("list[Any]", value))]
    if value is None:
        return False  # TOML has no null; `build` reads false as none where none is possible
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(f"{at} is {value!r:.80} of type {type(value).__name__}, which TOML cannot hold; give its name")


def _absolute(config: Config, base: Path, data: Mapping[str, Any]) -> Config:
    """Paths made absolute; the run folders, where the file does not say, lie in the current one."""
    changes: dict[str, Any] = {
        "folder": str((base if "folder" in data else Path.cwd()) / config.folder),
        "path": str(base / (config.path or "")),
    }
    changes |= {key: _path(given, base) for key in ("tasks", "eval_tasks") if (given := getattr(config, key)) is not None}
    if config.replay is not None:
        changes["replay"] = config.replay.under(base)
    if (base / config.model).is_dir():
        changes["model"] = str((base / config.model).resolve())
    return replace(config, **changes)


def store_file(address: str) -> Path | None:
    """The file that a store's address names (`sqlite:path`, or a plain path); None: it names something else."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme != "sqlite" and not address.startswith((".", "/", "~")):
        return None
    return Path(rest if colon and scheme == "sqlite" else address).expanduser()


def import_from(folder: Path) -> None:
    """Modules of this folder can be named."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _path(source: str, base: Path) -> str:
    return source if is_reference(source) else str(base / Path(source).expanduser())


def _at_least(where: str, value: Any, **least: int) -> None:
    for key, minimum in least.items():
        given = getattr(value, key)
        if given is not None and given < minimum:
            raise ConfigError(f"{where}.{key} is {given}; it must be at least {minimum}".removeprefix("."))


def _at(key: str) -> Any:
    return naming(key)
