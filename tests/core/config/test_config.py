from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.config.schema import Config, ReplayConfig, build, load_config, to_toml
from agentlightning.config.tables import bind, build_loss, open_table
from agentlightning.contracts import engine as contracts
from agentlightning.errors import ConfigError, PluginError
from agentlightning.registry.registry import Registry
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.discounted import discounted
from agentlightning.rl.loss import CISPO, PPOClip

LEAST = 'agent = "m:f"\ntasks = "train.jsonl"\nmodel = "smollm2-135m"\n'


@dataclass(frozen=True, kw_only=True)
class EngineSettings(contracts.EngineSettings):
    batch: int = 8
    device: Literal["cpu", "cuda"] = "cpu"
    cache: Path | None = None


class Engine(contracts.Engine):
    Settings = EngineSettings


class NoSettings(contracts.Engine):
    Settings = object  # type: ignore[assignment]


class Plugin:
    """An engine and a trainer called `torch`, without torch."""

    def register_engines(self, register: Callable[..., None]) -> None:
        register("torch", Engine)
        register("broken", NoSettings)
        register("stranger", object)

    def register_trainers(self, register: Callable[..., None]) -> None:
        register("torch", "a_module_that_is_heavy:Trainer")


def plugins() -> Registry:
    from agentlightning.registry import builtin

    return Registry({"builtin": builtin, "test": Plugin()})


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "demo.toml"
    path.write_text(text)
    return load_config(path, plugins())


def test_the_least_file_gives_a_run_with_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert (config.name, config.model, config.steps, config.sampling.temperature) == ("demo", "smollm2-135m", 10, 1.0)
    assert config.algorithm == {"name": "lightning"}
    assert config.folder == str(Path.cwd() / "runs")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = LEAST.replace("smollm2-135m", "model") + 'eval_tasks = "my.tasks:val"\nfolder = "out"\n'
    config = load(tmp_path, text)
    assert config.tasks == str(tmp_path / "train.jsonl")
    assert config.eval_tasks == "my.tasks:val"
    assert config.folder == str(tmp_path / "out")
    assert config.model == str(tmp_path / "model")


def test_what_was_read_is_written_and_read_again_the_same(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        LEAST
        + """
name = "full"
agents = ["write*"]
reward_weights = { correct = 0.9, format = 0.1 }
step_rewards = { tool_failed = -0.2, "json:loads" = 0.5 }
[algorithm]
name = "lightning"
group_size = 4
credit = { name = "discounted", gamma = 0.5 }
loss = { name = "ppo_clip", dual_clip = false }
[eval]
every = 2
tasks = 16
patience = 3
[runner]
on_failure = "penalise"
penalty = -1
[checkpoints]
every = 5
""",
    )
    assert config.agents == ("write*",)
    assert config.runner.penalty == -1.0
    assert config.step_rewards == {"tool_failed": -0.2, "json:loads": 0.5}
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config))
    assert load_config(again, plugins()) == config


def test_none_survives_where_the_default_is_something() -> None:
    loss = PPOClip(dual_clip=None)
    assert build(PPOClip, tomllib.loads(to_toml(loss))) == loss
    algorithm = LightningRL(credit=discounted, loss_aggregation="constant_length", length=64)
    assert build(LightningRL, tomllib.loads(to_toml(algorithm))).credit == "agentlightning.rl.credit.discounted:discounted"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("algorithm = {name='lightning', group_sise=4}", r"demo\.toml: unknown key 'group_sise' in \[algorithm\]; .*'group_size'\?"),
        ("stepz = 3", r"demo\.toml: unknown key 'stepz' at the top level; did you mean 'steps'\?"),
        ("[sampling]\ntemprature = 1", r"unknown key 'temprature' in \[sampling\]; did you mean 'temperature'\?"),
        ("steps = 'ten'", r"demo\.toml: steps is 'ten' \(text\); expected a whole number"),
        ("steps = true", r"steps is True \(true or false\); expected a whole number"),
        ("steps = 2.5", r"steps is 2\.5 \(a number\); expected a whole number"),
        ("steps = -1", r"demo\.toml: steps is -1; it must be at least 1"),
        ("sampling = 3", r"sampling is 3 \(a whole number\); expected a table"),
        ("agents = ['a', 3]", r"agents is \['a', 3\] \(a list\); expected a list, of each: text, .*\(look at agents\[1\]\)"),
        ("agents = []", r"agents is an empty list"),
        ("name = 'a/b'", r"name is 'a/b'"),
        ("reward_weights = { a = nan }", r"reward_weights\.a is nan"),
        ("step_rewards = { tool_faild = -1 }\nalgorithm = { name = 'lightning', credit = 'per_step' }", r"did you mean 'tool_failed'\?"),
        ("step_rewards = { truncated = inf }\nalgorithm = { name = 'lightning', credit = 'per_step' }", r"step_rewards\.truncated is inf"),
        ("step_rewards = { truncated = -1 }", r"step_rewards \(truncated\) nothing: algorithm\.credit 'identical' does not read them"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'lightning', credit = { name = 'last' } }", r"algorithm\.credit 'last'"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'rft' }", "algorithm 'rft' chooses rollouts by their own reward"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'dpo' }", "algorithm 'dpo' pairs rollouts by their own reward"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'sft', demonstrations = 'json:loads' }", "'sft' trains demonstrations"),
        ("[sampling]\ntemperature = 0", r"sampling\.temperature is 0\.0; it must be above 0"),
        ("[sampling]\ntemperature = nan", r"sampling\.temperature is nan"),
        ("[sampling]\nmax_tokens = 0", r"sampling\.max_tokens is 0; it must be at least 1"),
        ("[runner]\non_failure = 'ignore'", r"runner\.on_failure is 'ignore' \(text\); expected 'retry' or 'drop' or 'penalise'"),
        ("[runner]\nconcurrency = 0", r"runner\.concurrency is 0; it must be at least 1"),
        ("[eval]\nsamples = 0\ngreedy = false", r"eval\.samples is 0 and eval\.greedy is false"),
        ("[eval]\npatience = 2\nevery = 0", r"eval\.patience counts"),
        ("[checkpoints]\nlast = 0", r"checkpoints\.last is 0"),
        ("[engine]\nbatch = 2", r"missing 'name' in \[engine\]"),
        ("engine = { name = 'toch' }", r"demo\.toml: engine: unknown engine 'toch'; did you mean 'torch'\?"),
        ("sampler = 'epoch'", r"sampler: unknown sampler 'epoch'; did you mean 'epochs'\?"),
        ("adapters = ['langchian']", r"adapters: unknown adapter 'langchian'"),
        ("algorithm = { name = 'lightnin' }", r"algorithm: unknown algorithm 'lightnin'; did you mean 'lightning'\?"),
        ("[algorithm]\nname = 'lightning'\ngroup_size = 1", r"demo\.toml: algorithm\.group_size is 1"),
        ("[algorithm.credit]\nname = 'discounted'\ngama = 1", r"missing 'name' in \[algorithm\]"),
        ("[algorithm]\nname='lightning'\ncredit={name='discounted', gama=1}", r"unknown key 'gama' in \[algorithm\.credit\]"),
        ("[algorithm]\nname='lightning'\ncredit = { name = 'discounted', gamma = 3 }", r"credit\.gamma is 3"),
        ("[algorithm]\nname='lightning'\nloss = 'ppo'", r"algorithm\.loss: unknown loss 'ppo'"),
        ("steps = = 3", r"demo\.toml: not TOML: .*line 4"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_says_which_one_what_was_expected_and_what_was_given(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, LEAST + text)


def test_a_missing_key_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing 'model' at the top level; expected text"):
        load(tmp_path, "steps = 3")
    with pytest.raises(ConfigError, match=r"missing 'tasks' at the top level; expected text \(or a \[replay\]"):
        load(tmp_path, LEAST.replace("tasks", "eval_tasks"))


SOURCE = 'model = "smollm2-135m"\nreplay = { store = "sqlite:agl.db" }\n'


def test_a_source_needs_no_tasks_and_no_agent_and_its_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, SOURCE)
    assert (config.agent, config.tasks, config.replay) == (None, None, ReplayConfig(store=f"sqlite:{tmp_path / 'agl.db'}"))
    for address, kept in [("agl.db", f"sqlite:{tmp_path / 'agl.db'}"), ("http://host:8000", "http://host:8000")]:
        config = load(tmp_path, SOURCE.replace("sqlite:agl.db", address))
        assert config.replay == ReplayConfig(store=kept)
        (tmp_path / "again.toml").write_text(to_toml(config))
        assert load_config(tmp_path / "again.toml", plugins()) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('tasks = "train.jsonl"', "tasks and replay are both given; with replay the tasks are those of its rollouts"),
        ('sampler = "in_order"', "sampler and replay are both given"),
        ('eval_tasks = "val.jsonl"', 'eval_tasks is given, and no agent that would act on them; give agent = "module:function"'),
        ('agent = "m:f"', "agent is given, and with replay it acts on eval_tasks alone; give eval_tasks, or leave agent out"),
        ('command = "python act.py"', "command is given, and with replay it acts on eval_tasks alone"),
        ("collection = { max_staleness = 2 }", "collection.max_staleness is 2, and with replay nothing is started"),
        ('collection = { filter = "nonzero_variance" }', "collection.filter is 'nonzero_variance', and with replay nothing is started"),
        ('algorithm = { name = "sft", demonstrations = "m:f" }', "algorithm 'sft' trains demonstrations that it gives while an agent runs"),
    ],
)
def test_what_does_not_go_with_a_source_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, f"{text}\n{SOURCE}")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('{ store = "a.db", wait_for = 3 }', r"unknown key 'wait_for' in \[replay\]; did you mean 'wait'\? known: store, wait"),
        ("{ wait = true }", r"missing 'store' in \[replay\]"),
        (
            '{ store = "http://secret@host:8000" }',
            "replay.store has a token in it, and a run keeps its configuration; leave it out, and set",
        ),
    ],
)
def test_a_wrong_source_is_named(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, SOURCE.replace('{ store = "sqlite:agl.db" }', table))


def test_an_agent_is_a_module_and_a_function(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 'module:function'"):
        load(tmp_path, LEAST.replace("m:f", "solve"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: the configuration cannot be read: No such file"):
        load_config(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xfc"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        load_config(tmp_path / "latin.toml")


# The parts of an algorithm, and plugins' settings


def test_a_function_gets_its_settings_as_keywords() -> None:
    assert bind("credits", "identical", "algorithm.credit", plugins())(RolloutArrays.of([])).tolist() == []
    bound = bind("advantages", {"name": "grpo", "std": False, "eps": 1}, "algorithm.advantage", plugins())
    assert bound.keywords == {"std": False, "eps": 1.0}  # type: ignore[attr-defined]
    assert bind("credits", discounted, "algorithm.credit", plugins()) is discounted
    with pytest.raises(ConfigError, match=r"algorithm\.advantage\.std is 'no' \(text\); expected true or false"):
        bind("advantages", {"name": "grpo", "std": "no"}, "algorithm.advantage", plugins())
    with pytest.raises(ConfigError, match=r"missing 'name' in \[algorithm\.credit\]"):
        bind("credits", {"gamma": 1.0}, "algorithm.credit", plugins())
    with pytest.raises(ConfigError, match=r"algorithm\.credit is 3 \(a whole number\); expected a function"):
        bind("credits", 3, "algorithm.credit", plugins())


def test_the_rollouts_are_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'returns' in \[algorithm\.advantage\]"):
        bind("advantages", {"name": "rloo", "returns": 1}, "algorithm.advantage", plugins())


def test_a_function_of_ones_own_may_fail_without_rollouts_and_take_any_keyword() -> None:
    def own(trajectories: Any, **anything: Any) -> Any:
        return [np.zeros(1)] if trajectories[0] else anything

    assert bind("credits", {"name": own, "x": 3}, "algorithm.credit", plugins()).keywords == {"x": 3}  # type: ignore[attr-defined]


def test_a_loss_is_named_or_given() -> None:
    assert build_loss("cispo", "algorithm.loss", plugins()) == CISPO()
    assert build_loss({"name": "ppo_clip", "clip_high": 1, "epochs": 2}, "algorithm.loss", plugins()) == PPOClip(clip_high=1.0, epochs=2)
    assert build_loss(given := CISPO(epochs=3), "algorithm.loss", plugins()) is given
    with pytest.raises(ConfigError, match=r"unknown key 'cliphigh' in \[algorithm\.loss\]; did you mean 'clip_high'\?"):
        build_loss({"name": "ppo_clip", "cliphigh": 1}, "algorithm.loss", plugins())


def test_an_engines_table_becomes_its_settings() -> None:
    cls, settings = open_table("engines", {"name": "torch", "device": "cuda", "cache": "here"}, "engine", plugins())
    assert (cls, settings) == (Engine, EngineSettings(device="cuda", cache=Path("here")))
    with pytest.raises(ConfigError, match=r"engine\.device is 'tpu' \(text\); expected 'cpu' or 'cuda'"):
        open_table("engines", {"name": "torch", "device": "tpu"}, "engine", plugins())
    with pytest.raises(PluginError, match="no dataclass `Settings`"):
        open_table("engines", {"name": "broken"}, "engine", plugins())
    with pytest.raises(PluginError, match=r"engine 'stranger' is not a subclass of agentlightning\.contracts\.engine\.Engine\. Derive"):
        open_table("engines", {"name": "stranger"}, "engine", plugins())


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    other: Inner | None = None
    free: Callable[[], int] | str = "x"
    names: dict[str, float] = field(default_factory=dict[str, float])


def test_tables_in_tables_are_built_and_named() -> None:
    assert build(Outer, {"inner": {"size": 1}, "other": {"size": 2}}) == Outer(Inner(1), Inner(2))
    assert build(Outer, {"inner": Inner(1), "other": False}) == Outer(Inner(1))
    with pytest.raises(ConfigError, match=r"unknown key 'sice' in \[a\.inner\]; did you mean 'size'\?"):
        build(Outer, {"inner": {"sice": 1}}, "a")
    with pytest.raises(ConfigError, match=r"missing 'size' in \[inner\]; expected a whole number"):
        build(Outer, {"inner": {}})
    with pytest.raises(ConfigError, match=r"names is \{'a': 'b'\} \(a table\); expected a table, of each: a number"):
        build(Outer, {"inner": {"size": 1}, "names": {"a": "b"}})
    with pytest.raises(ConfigError, match=r"a is 3 \(a whole number\); expected a table"):
        build(Outer, 3, "a")


def test_annotations_that_cannot_be_read_are_the_plugins_fault() -> None:
    @dataclass
    class Wrong:
        x: NoSuchName  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match="NoSuchName"):
        build(Wrong, {"x": 1})


def test_a_configuration_names_no_plugin_that_must_be_imported_early(tmp_path: Path) -> None:
    load(tmp_path, LEAST)  # the trainer's module does not exist: reading a configuration does not open it
    with pytest.raises(PluginError, match="a_module_that_is_heavy"):
        open_table("trainers", {"name": "torch"}, "trainer", plugins())
