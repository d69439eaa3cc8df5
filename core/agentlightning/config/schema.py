"""The settings of a run, as `agl train CONFIG.toml` reads them and as the run folder keeps them.

Every mistake is an error before a model loads. The tables of plugins (`algorithm`, `engine`, `trainer`) stay as they were written until
`agentlightning.config.parts` makes them.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from msgspec import Meta

from agentlightning.config.keys import check_config_keys
from agentlightning.config.models import model_path
from agentlightning.config.parts import Part, build_step_rewards, naming
from agentlightning.config.policies import PolicyConfig, absolute_weights, check_policies
from agentlightning.config.presets import two_stages, with_preset
from agentlightning.config.prompts import PromptsSetting, prompts_under
from agentlightning.config.rewards import PROGRAM_REWARDS, RewardFrom, RewardSetting, RewardTable
from agentlightning.config.store_address import absolute_store, check_no_secret
from agentlightning.config.task_files import HUB
from agentlightning.config.tasks import is_reference
from agentlightning.config.teacher import TeacherConfig
from agentlightning.contracts.rendering import HistoryMode, RenderingChoices, RenderingSettings, saved_rendering
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import Registry, registry
from agentlightning.settings import (
    MAX,
    BaseSettings,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    build,
    of_kind,
)
from agentlightning.types import JSON, Task

Reference = Annotated[str, Meta(pattern=".:.", description="'module:function'")]
DEFAULT_PARTS = {"algorithm": "lightning", "engine": "torch", "trainer": "torch"}
"""The `name` of a table that has none."""
PARTS = {**{key: (f"{key}s", default) for key, default in DEFAULT_PARTS.items()}, "runner": ("runners", "local")}
"""Kind and default name of each table whose `name` chooses its settings. A text in place of the table is the name."""
FolderName = Annotated[str, Meta(pattern=r"^[^/\\\x00]+$", description="text without slashes, because it becomes part of a folder's name")]


@dataclass(frozen=True, kw_only=True)
class RunnerSettings(BaseSettings):
    """Settings for how and where rollouts run."""

    table = "runner"
    imports_agent: ClassVar[bool] = True
    """Whether this machine has the agent, too, so that a wrong name is an error before the run begins."""
    name: str = "local"
    """Where agents run: here (`local`), or as a plugin arranges it (`ray`, `docker`)."""
    concurrency: PositiveInt = 32
    """Rollouts in flight, in each process."""
    timeout: PositiveFloat = 300.0
    """Seconds for one attempt."""
    workers: NonNegativeInt = 0
    """Worker processes; 0 runs agents in this process. Use workers for agents that block or crash."""
    remote: bool = False
    """Run the agent with runners on other machines. The run prints their command. With `workers`, this machine helps."""
    attempts: PositiveInt = 3
    """Attempts at one rollout, at most. One whose lease ended counts. An attempt does not count if its runner was stopped, or if another
    rollout may have ended its worker."""
    on_failure: Literal["retry", "drop", "penalise"] = "retry"
    """Handling of an attempt that raised an error or hung. `retry`: try again, and drop the rollout after the last attempt. A
    failure that cannot change is the last one: a refused prompt, a reward of the wrong type, the same error twice. `drop`: drop it.
    `penalise`: train on it with the reward `penalty`."""
    penalty: FiniteFloat = 0.0
    """The reward of a failed attempt with `on_failure = "penalise"`."""
    lease: PositiveFloat = 60.0
    """Seconds without a heartbeat of a runner before another runner takes over its attempt."""

    def check_machine(self) -> None:
        """Raise `ConfigError` if this machine cannot run agents this way. Called in a thread, before anything opens."""

    @property
    def elsewhere(self) -> bool:
        """Whether runners outside this process and its workers run the agent."""
        return self.remote or self.name != "local"


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(BaseSettings):
    """How training and sampled evaluation sample. It overrides the agent's own settings."""

    table = "sampling"
    temperature: Annotated[float, Meta(gt=0, le=MAX, description="1.0 is usual; greedy replies teach nothing")] = 1.0
    """Temperature of training rollouts."""
    max_tokens: PositiveInt | None = None
    """Tokens of one reply, at most. Absent: as the agent asks, up to the model's context."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(BaseSettings):
    """Evaluation on `eval_tasks`: before the first step, after the last, and in between."""

    table = "eval"
    every: NonNegativeInt = 5
    """Steps between two evaluations; 0 evaluates only before and after."""
    tasks: PositiveInt | None = None
    """Evaluate N tasks, spread evenly over `eval_tasks`, which may be sorted. Absent: all."""
    samples: NonNegativeInt = 1
    """Sampled rollouts of each task; 0 for none."""
    greedy: bool = True
    """Also run one greedy rollout of each task."""
    cache: bool = True
    """Reuse evaluations of the same weights, tasks, agent and settings, of earlier runs in `folder` too. False runs them again."""
    patience: PositiveInt | None = None
    """Stop after N evaluations in a row without a higher sampled reward. Absent: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.samples and not self.greedy:
            raise ConfigError("eval.samples is 0 and eval.greedy is false, so nothing is evaluated. Set one of them, or remove eval_tasks.")
        if self.patience is not None and not self.every:
            raise ConfigError("eval.patience counts evaluations during training, but eval.every is 0. Set eval.every.")

    def chosen(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of an evaluation, in their order."""
        count = len(tasks) if self.tasks is None else min(self.tasks, len(tasks))
        return [tasks[place * len(tasks) // count] for place in range(count)]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(BaseSettings):
    """When checkpoints are written, and which stay on disk. A run always writes one after its last step and when you stop it."""

    table = "checkpoints"
    every: NonNegativeInt = 10
    """Steps between two checkpoints; 0 writes only the last."""
    best: bool = True
    """Write and keep the best one by a paired test over the eval tasks (`docs/not-learning.md`)."""
    last: PositiveInt = 2
    """Keep the newest N. Resuming needs at least one."""
    keep_every: PositiveInt | None = None
    """Also keep the checkpoint of every Nth step."""


@dataclass(frozen=True, kw_only=True)
class CollectionConfig(BaseSettings):
    """The rollouts of a step, and the replies of them that are trained."""

    table = "collection"
    max_staleness: NonNegativeInt = 0
    """Off-policy steps: training steps between sampling a token and training it. With 0 a step's rollouts start after the step before it.
    Above 0, collection continues during a training step, up to so many steps ahead. The engine then serves weights of its own, which may
    change during a rollout. Replies with an older token are excluded and counted."""
    filter: Annotated[JSON, of_kind("filters")] = None
    """Keep some groups: `nonzero_variance` (rewards differ), `difficulty` (`{name = "difficulty", low = 0.1, high = 0.9}`), or your own
    function. Absent: all. Filtered groups are not trained, and count among the scored rollouts."""
    resample: NonNegativeInt = 0
    """Groups that a step starts, at most, in place of filtered ones (dynamic sampling)."""
    truncated: Literal["train", "drop"] = "train"
    """Train or drop replies that a token limit cut off. (To penalise them, give them a reward.)"""
    overlong: Literal["error", "drop"] = "error"
    """A conversation longer than `trainer.tokens_per_pack` stops the run with an error, or its replies beyond are excluded and counted. The
    gateway refuses one longer than the model's context, which is a failure of the agent (`runner.on_failure`)."""

    no_calls: Literal["drop", "keep"] = "drop"
    """Rollouts that succeeded without a model call are dropped: they count neither in the mean reward nor in a baseline. Or keep their
    rewards, for an agent that may decide not to ask its model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resample and self.filter is None:
            problem = f"collection.resample is {self.resample}, but nothing is filtered"
            raise ConfigError(f'{problem}. Set collection.filter = "nonzero_variance", or remove resample.')


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(BaseSettings):
    """The store whose rollouts a run trains on, without an agent (`agentlightning.training.production`)."""

    table = "replay"
    store: str
    """Its address, as in `agl serve` and `agl.rollout`, or the folder of a run. It is only read."""
    mode: Literal["production", "train"] = "production"
    """Train on the rollouts of a deployed agent, or on the training rollouts of earlier runs."""
    wait: bool = False
    """Wait for rollouts and rewards that are still to come. Otherwise the run ends when nothing is left to train."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_no_secret("replay.store", self.store)

    def under(self, base: Path) -> ReplayConfig:
        """Return the same settings, with the path of a store file made absolute."""
        return replace(self, store=absolute_store(self.store, base))


@dataclass(frozen=True, kw_only=True)
class Config(BaseSettings):
    """A training run."""

    agent: Reference | None = None
    """Your agent as `module:function`, called with `(task, llm)`. Give this or `command`; with a `replay`, only for `eval_tasks`."""
    command: str | None = None
    """A command line to run for each rollout: a program in any language. See `agl rollout --help`."""
    reward: RewardSetting = "stdout"
    """Scorer of finished rollouts, for agents that return no reward: `module:function` of the recorded rollout, or a `judge`. For a
    command: `stdout` (its last line), `exit_code`, `file` (`AGL_REWARD_FILE`), `post` (a request), or `none`."""
    tasks: str | None = None
    """A `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet` file (`.gz` may follow), a Hugging Face data set
    (`hf:openai/gsm8k:main:train`, or the folder of one), or `module:attribute`. Give this or `replay`."""
    replay: ReplayConfig | None = None
    """Train on the rollouts of a store: of a deployed agent, or of earlier runs."""
    model: str
    """A name that `agl models` lists, a folder, a `.gguf` file, a LoRA adapter, a run, or a hub id."""
    eval_tasks: str | None = None
    """Tasks that are never trained on, to measure progress; in the same form as `tasks`."""
    task_columns: dict[str, str] = field(default_factory=dict[str, str])
    """New names for the keys of `tasks` and `eval_tasks`, old = new: `{ problem = "question" }`."""
    name: FolderName = "run"
    """Part of the run folder's name. Default: the name of the config file."""
    seed: NonNegativeInt = 0
    """Seed of the order of tasks and of sampling."""
    steps: PositiveInt = 10
    """Training steps."""
    tasks_per_step: PositiveInt = 8
    """Tasks in each step."""
    sampler: Annotated[str, of_kind("samplers")] = "epochs"
    """Order of the tasks: `epochs` (shuffled), `in_order`, or `curriculum` (finds tasks whose rewards differ, and samples them more
    often; starts from what earlier runs with this name in `folder` measured)."""
    adapters: tuple[Annotated[str, of_kind("adapters")], ...] = ()
    """Framework adapters to install, for an agent without a callback."""
    models: tuple[str, ...] = ()
    """Model names or patterns (`gpt-4o*`) that your agent hard-codes. Those calls go to the model being trained."""
    renderer: str | None = None
    """How messages become tokens: `auto` and `template` use the model's chat template. `text` does too, but describes tools in the system
    message. `chatml` needs no template. Or a family of the `renderers` library, or `module:function`. Absent: the renderer saved with the
    weights, else `auto`. The next four keys default the same way."""
    chat_template: str | None = None
    """A Jinja file to use instead of the model's own chat template."""
    template_arguments: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Variables of the chat template, such as `enable_thinking = false`."""
    history: HistoryMode | None = None
    """Earlier turns: as the chat template writes them now (`template`, the default), or always as they were sampled (`exact`)."""
    special_tokens: bool | None = None
    """Whether text of users and tools that looks like a special token (`<|im_end|>`) becomes one. Default: false."""
    agents: tuple[str, ...] | None = None
    """Names or patterns of the agents to train. Absent: all."""
    policies: dict[str, PolicyConfig] = field(default_factory=dict[str, PolicyConfig])
    """Several policies by name, over one model (`docs/policies.md`). The first one also answers calls of agents that no
    policy has. Absent: one policy."""
    reward_weights: dict[str, FiniteFloat] = field(default_factory=dict[str, float])
    """Weight of each named reward in the return. Default: 1."""
    prompts: PromptsSetting = field(default_factory=dict[str, str])
    """Texts of the agent's prompts by name, in place of its own: `llm.prompt(NAME)` returns them. A text, or the path of a `.md` or `.txt`
    file. Or a run of algorithm `gepa`, for the best prompts that it found."""
    step_rewards: dict[str, FiniteFloat] = field(default_factory=dict[str, float])
    """Reward of a step that shows a signal, by the signal's name (`tool_failed`) or `module:function`."""
    algorithm: Annotated[dict[str, JSON], of_kind("algorithms")] = field(default_factory=dict[str, JSON])
    """The training algorithm and its settings."""
    engine: Annotated[dict[str, JSON], of_kind("engines")] = field(default_factory=dict[str, JSON])
    """The inference engine and its settings."""
    trainer: Annotated[dict[str, JSON], of_kind("trainers")] = field(default_factory=dict[str, JSON])
    """The trainer and its settings."""
    teacher: TeacherConfig | None = None
    """A model that scores the sampled tokens (`algorithm.teacher_coef`), or answers the agent in the trained model's place (`sft`,
    `algorithm.demonstrated_steps`)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    runner: Annotated[RunnerSettings, of_kind("runners")] = field(default_factory=RunnerSettings)
    """The runner and its settings: how and where the agent runs."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    trackers: tuple[Annotated[JSON, of_kind("trackers")], ...] = ("jsonl",)
    """Where to show the run besides its folder: names, or tables with a name and settings, as in `["tensorboard", {name = "wandb", project
    = "agents"}]` (`docs/trackers.md`)."""
    otlp_endpoint: str | None = None
    """Address of an OpenTelemetry receiver, without `/v1/traces`: it gets each finished rollout as a trace. Absent:
    `OTEL_EXPORTER_OTLP_ENDPOINT`, or none."""
    mismatch_alarm: NonNegativeFloat = 0.05
    """Raise an alarm if the mean difference in log-probability between engine and trainer, per sampled token, is above this by more than
    two standard errors."""
    mismatch_limit: PositiveFloat = 0.2
    """Do not train a step above this difference. The engine loads the weights again, and the step samples new rollouts, once."""
    host: str = "127.0.0.1"
    """Address that the gateway listens on. `0.0.0.0` lets other machines in, for `runner.remote`."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port of the gateway; 0 takes a free one."""
    address: str | None = None
    """How other machines reach the gateway, as in `http://trainer:8001`. Absent: the name of this machine, and the port."""
    max_body_mb: Annotated[int, Meta(ge=1)] = 32
    """Largest body of a request to the gateway, in MB. The gateway refuses larger ones before it reads them."""
    folder: str = "runs"
    """Folder for run folders."""
    store: str | None = None
    """Address of an empty store for the run's rollouts. `postgresql://user@host/database` gets a schema for each run. Absent: `store.db` in
    the run folder."""
    path: str | None = None
    """Folder for imports of the modules named here, and for a command to run in. Default: the config file's folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store is not None:
            check_no_secret("store", self.store)
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"otlp_endpoint is {self.otlp_endpoint!r}. Use an HTTP address, such as http://127.0.0.1:4318.")
        for key, default in DEFAULT_PARTS.items():
            table = {"name": default, **getattr(self, key)}
            if not isinstance(table["name"], str):
                raise ConfigError(f"{key}.name is {table['name']!r:.80}. Use text.")
            object.__setattr__(self, key, table)
        if self.agents is not None and not self.agents:
            raise ConfigError("agents is an empty list, so nothing would be trained. Name an agent, or remove it to train all.")
        check_policies(self.policies)
        for key in ("agents", "replay") if self.policies else ():
            if getattr(self, key) is not None:
                problem = "a policy names its own agents" if key == "agents" else "a replay trains one policy"
                raise ConfigError(f"{key} and policies are both set, but {problem}. Remove one of them.")
        if self.replay is None:
            self._check_tasks()
        else:
            self._check_replay()
        if self.command is not None:
            self._check_command()

    def rendering(self, model: str) -> RenderingSettings:
        """Return the settings of the gateway's renderer: those beside the weights in the folder `model`, with those of this run on top.
        Raises `ConfigError` if `chat_template` cannot be read."""
        return self.rendering_choices.over(saved_rendering(Path(model)))

    @property
    def rendering_choices(self) -> RenderingChoices:
        """The settings of the renderer that this run sets."""
        return RenderingChoices(self.renderer, self.chat_template, self.template_arguments, self.history, self.special_tokens)

    @property
    def scorer(self) -> str | RewardTable | None:
        """What scores the finished rollouts: `module:function`, or a judge. None: the agent or its program gives the reward."""
        return None if self.reward in PROGRAM_REWARDS else self.reward

    @property
    def program_reward(self) -> RewardFrom:
        """Where the reward of a command comes from."""
        return "none" if self.scorer is not None else cast(RewardFrom, self.reward)

    def _check_tasks(self) -> None:
        if self.tasks is None:
            raise ConfigError("Missing 'tasks' at the top level. Set it to text, or add a [replay] table to train a deployed agent.")
        if (self.agent is None) == (self.command is None):
            problem = "agent and command are both set" if self.agent else "Missing 'agent' at the top level"
            raise ConfigError(f'{problem}. Set either agent = "module:function", or command = "..." for a program.')
        if self.agent is not None and self.reward != "stdout" and self.reward in PROGRAM_REWARDS:
            raise ConfigError(f"reward is {self.reward!r}, but only a command takes it. An agent returns its reward; remove this key.")

    def _check_replay(self) -> None:
        """With a replay the tasks are those of its rollouts, and an agent or a command acts on `eval_tasks` alone."""
        for key, is_set in {"tasks": self.tasks is not None, "sampler": self.sampler != "epochs"}.items():
            if is_set:
                raise ConfigError(f"{key} and replay are both set. A replay brings the tasks of its rollouts; remove {key}.")
        for key, default in {"max_staleness": 0, "filter": None, "resample": 0}.items():
            value = getattr(self.collection, key)
            if value != default:
                raise ConfigError(f"collection.{key} is {value!r}, but a replay starts and filters no rollouts. Remove it.")
        key = "agent" if self.agent is not None else "command" if self.command is not None else None
        if key is None and self.eval_tasks is not None:
            raise ConfigError('eval_tasks is set, but there is no agent to evaluate. Set agent = "module:function", or remove eval_tasks.')
        if key is None and self.scorer is not None:
            raise ConfigError(
                "reward scores the rollouts of an agent, but a replay's rollouts keep the rewards of their store. Score them there with "
                "`agl score STORE --reward CONFIG.toml`, and remove reward."
            )
        if key is not None and self.eval_tasks is None:
            raise ConfigError(f"{key} is set, but with a replay it only acts on eval_tasks. Set eval_tasks, or remove {key}.")
        if self.agent is not None and self.command is not None:
            raise ConfigError("agent and command are both set. Remove one of them.")

    def _check_command(self) -> None:
        """A command runs in processes of its own, where no adapter is."""
        if self.adapters:
            raise ConfigError(
                f"adapters is {list(self.adapters)}, but adapters cannot see the agents of a command. Remove it, and switch on the "
                "program's OpenTelemetry."
            )
        if self.runner.workers:
            raise ConfigError(f"runner.workers is {self.runner.workers}, but a command runs in processes of its own. Remove it.")


def load_config(path: str | Path, plugins: Registry | None = None) -> Config:
    """Read and check a config file. Paths in it are relative to the file's folder, and absolute in the result.

    Checks the names of plugins and the settings of the algorithm. `Part` checks those of engine and trainer, whose classes are heavy to
    import. Raises `ConfigError`, which names the file.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: The config file cannot be read: {error.strerror or error}. Check its path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: The file is not UTF-8 at byte {error.start + 1}. Save it as UTF-8.") from error
    with naming(path):
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"The file is not TOML: {error}. Correct it there.") from error
        config = build_config({"name": path.stem, **data}, plugins)
        import_from(path.resolve().parent / (config.path or ""))
        check_names(config, plugins)
        return _absolute(config, path.resolve().parent, data)


def build_config(data: Mapping[str, Any], plugins: Registry | None = None) -> Config:
    """Return the config of a table. Raises `ConfigError`.

    A text in place of a part's table is its name, and the name of a preset means settings of `lightning`. The `name` in its `runner`
    chooses the class of those settings.
    """
    named = {key: {"name": value} for key in PARTS if isinstance(value := data.get(key), str)}  # engine = "vllm"
    data = {**data, **named}
    if isinstance(stages := data.get("algorithm"), list | tuple):
        data = {**data, "algorithm": two_stages(cast("Sequence[Any]", stages))}
    if isinstance(algorithm := data.get("algorithm"), Mapping):
        data = {**data, "algorithm": with_preset(cast("Mapping[str, Any]", algorithm))}
    if isinstance(stages, list | tuple):
        _check_first(data["algorithm"], plugins or registry())
    check_config_keys(Config, PARTS, data, plugins or registry())
    runner = data.get("runner")
    if not isinstance(runner, Mapping):
        return build(Config, data)
    name = str(cast("Mapping[str, Any]", runner).get("name", "local"))
    with naming("runner"):
        entry = (plugins or registry()).entry("runners", name)
    return build(Config, {**data, "runner": build(entry.load_settings(), runner, "runner")})


def _check_first(algorithm: Mapping[str, Any], plugins: Registry) -> None:
    """Check that another algorithm can follow the first one of two."""
    name, second = str(algorithm.get("name")), algorithm["then"].get("name")
    with naming("algorithm"):
        target = plugins.load("algorithms", name)
    if is_dataclass(target) and "then" not in {setting.name for setting in fields(target)}:
        raise ConfigError(
            f"algorithm is a list of {name!r} and {second!r}, but nothing can follow {name!r}. The search for prompts comes first, as in "
            "['gepa', 'lightning']."
        )


def check_names(config: Config, plugins: Registry | None = None) -> None:
    """Check that every plugin is known and that the algorithm's settings fit it. Imports no engine and no trainer."""
    plugins = plugins or registry()
    kinds = {"engine": "engines", "trainer": "trainers", "adapters": "adapters"}
    for key, kind in kinds.items():
        names: Iterable[str] = [getattr(config, key)["name"]] if key in ("engine", "trainer") else getattr(config, key)
        for name in names:
            if ":" not in name:
                with naming(key):
                    plugins.entry(kind, name)
    _check_trackers(config.trackers, plugins)
    with naming("sampler"):
        plugins.load("samplers", config.sampler)
    if config.collection.filter is not None:
        Part.parse("filters", config.collection.filter, "collection.filter", plugins).make()
    build_step_rewards(config.step_rewards, plugins)
    algorithm = Part.parse("algorithms", config.algorithm, "algorithm", plugins).make()
    if algorithm.needs.answers:
        _check_answers(config)
    if algorithm.trains_demonstrations:
        _check_demonstrations(config, own=config.algorithm.get("demonstrations") is not None)
    algorithm.parts()
    if config.step_rewards and (why := algorithm.ignores_step_rewards) is not None:
        raise ConfigError(f"step_rewards ({', '.join(config.step_rewards)}) would change nothing: {why}")


def _check_demonstrations(config: Config, *, own: bool) -> None:
    """Check that there is one source of demonstrations. `own`: the algorithm names a function."""
    if own and config.replay is not None:
        raise ConfigError(
            "algorithm.demonstrations demonstrates replies while an agent runs, but a replay has replies of its own. Remove demonstrations "
            "to train those of the store, or remove replay."
        )
    if not own and config.replay is None and config.teacher is None:
        raise ConfigError(
            f"Algorithm {config.algorithm['name']!r} has no demonstrations. Set algorithm.demonstrations = 'module:function', a [teacher] "
            "that answers, or a replay of imported traces (docs/teachers.md)."
        )


def _check_answers(config: Config) -> None:
    """Check that a teacher can answer in the first steps, whose groups have one rollout each."""
    if not config.algorithm.get("demonstrated_steps"):
        return
    if config.replay is not None:
        raise ConfigError("algorithm.demonstrated_steps needs an agent that runs, and a replay has none. Remove one of them.")
    for key, default in {"max_staleness": 0, "filter": None}.items():
        value = getattr(config.collection, key)
        if value != default:
            raise ConfigError(
                f"collection.{key} is {value!r}, and algorithm.demonstrated_steps starts one rollout of each task. Remove "
                f"collection.{key}, or train the demonstrations in a run of their own with algorithm 'sft'."
            )


def tracker_key(table: JSON) -> str:
    """Return the name of a tracker's table in messages: `trackers.wandb`."""
    name: object = cast("dict[str, JSON]", table).get("name") if isinstance(table, dict) else table
    return f"trackers.{name}" if isinstance(name, str) else "trackers"


def _check_trackers(tables: Sequence[JSON], plugins: Registry) -> None:
    """Check names and settings. Whether the libraries are installed is checked before the model loads, but not for a copy of a config."""
    names = list[str]()
    for table in tables:
        where = tracker_key(table)
        settings = dict(cast("dict[str, JSON]", table)) if isinstance(table, dict) else {"name": table}
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"trackers has {table!r:.80}. Use a name, or a table with a name and settings.")
        if name in names:
            raise ConfigError(f"trackers has {name!r} twice. Remove one of them.")
        names.append(name)
        if ":" not in name:
            with naming("trackers"):
                entry = plugins.entry("trackers", name)
            if (settings_class := entry.load_settings()) is not None:
                build(settings_class, settings, where)


def _absolute(config: Config, base: Path, data: Mapping[str, Any]) -> Config:
    """Make paths absolute. Without `folder` in the file, run folders are in the current folder."""
    changes: dict[str, Any] = {
        "folder": str((base if "folder" in data else Path.cwd()) / config.folder),
        "path": str(base / (config.path or "")),
    }
    changes |= {key: _path(source, base) for key in ("tasks", "eval_tasks") if (source := getattr(config, key)) is not None}
    if config.replay is not None:
        changes["replay"] = config.replay.under(base)
    if isinstance(config.reward, RewardTable):
        changes["reward"] = config.reward.under(base)
    if config.prompts:
        changes["prompts"] = prompts_under(config.prompts, base)
    if config.teacher is not None:
        changes["teacher"] = config.teacher.under(base)
    if config.store is not None:
        changes["store"] = absolute_store(config.store, base)
    changes["model"] = model_path(config.model, base)
    changes["policies"] = absolute_weights(config.policies, base)
    if config.chat_template is not None:
        changes["chat_template"] = str(base / Path(config.chat_template).expanduser())
    return replace(config, **changes)


def import_from(folder: Path) -> None:
    """Let Python import the modules of a folder."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _path(source: str, base: Path) -> str:
    if source.startswith(HUB):
        name, colon, rest = source.removeprefix(HUB).partition(":")
        return f"{HUB}{(base / name).resolve()}{colon}{rest}" if (base / name).is_dir() else source
    return source if is_reference(source) else str(base / Path(source).expanduser())
