from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from msgspec import Meta

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.config.parts import Part
from agentlightning.config.presets import PRESETS
from agentlightning.config.schema import Config, ReplayConfig, build_config, check_names, load_config
from agentlightning.config.toml import to_toml
from agentlightning.contracts import engine as contracts
from agentlightning.errors import ConfigError, PluginError
from agentlightning.registry.registry import Registry, load_object
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.discounted import discounted
from agentlightning.rl.loss import CISPO, PPOClip
from agentlightning.settings import BaseSettings, PositiveInt, UnitInterval, build

BASE = {"agent": "m:f", "tasks": "train.jsonl", "model": "smollm2-135m"}
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


def make(kind: str, value: Any, where: str) -> Any:
    return Part.parse(kind, value, where, plugins()).make()


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
        ("algorithm = {name='lightning', group_sise=4}", r"demo\.toml: Unknown key 'group_sise' in \[algorithm\]\. .*'group_size'\?"),
        ("stepz = 3", r"demo\.toml: Unknown key 'stepz' at the top level\. Did you mean 'steps'\?"),
        ("[sampling]\ntemprature = 1", r"Unknown key 'temprature' in \[sampling\]\. Did you mean 'temperature'\?"),
        ("steps = 'ten'", r"demo\.toml: steps is 'ten'\. Use a whole number of at least 1\."),
        ("steps = true", r"steps is True\. Use a whole number"),
        ("steps = 2.5", r"steps is 2\.5\. Use a whole number"),
        ("steps = -1", r"demo\.toml: steps is -1\. Use a whole number of at least 1\."),
        ("sampling = 3", r"sampling is 3\. Use a table\."),
        ("agents = ['a', 3]", r"agents\[1\] is 3\. Use text\."),
        ("agents = []", r"agents is an empty list"),
        ("name = 'a/b'", r"name is 'a/b'"),
        ("reward_weights = { a = nan }", r"reward_weights\.a is nan"),
        ("step_rewards = { tool_faild = -1 }\nalgorithm = { name = 'lightning', credit = 'per_step' }", r"Did you mean 'tool_failed'\?"),
        ("step_rewards = { truncated = inf }\nalgorithm = { name = 'lightning', credit = 'per_step' }", r"step_rewards\.truncated is inf"),
        ("step_rewards = { truncated = -1 }", r"would change nothing: algorithm\.credit 'identical' does not read them"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'lightning', credit = { name = 'last' } }", r"algorithm\.credit 'last'"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'rft' }", "algorithm 'rft' chooses rollouts by their own reward"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'dpo' }", "algorithm 'dpo' pairs rollouts by their own reward"),
        ("step_rewards = { truncated = -1 }\nalgorithm = { name = 'sft', demonstrations = 'json:loads' }", "'sft' trains demonstrations"),
        ("[sampling]\ntemperature = 0", r"sampling\.temperature is 0\. Use a finite number above 0 \(1\.0 is usual"),
        ("[sampling]\ntemperature = nan", r"sampling\.temperature is nan"),
        ("[sampling]\nmax_tokens = 0", r"sampling\.max_tokens is 0\. Use a whole number of at least 1, or false for none\."),
        ("[runner]\non_failure = 'ignore'", r"runner\.on_failure is 'ignore'\. Use 'retry', 'drop' or 'penalise'\."),
        ("[runner]\nconcurrency = 0", r"runner\.concurrency is 0\. Use a whole number of at least 1\."),
        ("[eval]\nsamples = 0\ngreedy = false", r"eval\.samples is 0 and eval\.greedy is false"),
        ("[eval]\npatience = 2\nevery = 0", r"eval\.patience counts"),
        ("[checkpoints]\nlast = 0", r"checkpoints\.last is 0"),
        ("[sampling]\ntemp = 1", r"Unknown key 'temp' in \[sampling\]\. Did you mean 'temperature'\?"),
        ("[algorithm]\ngroup_sise = 4", r"Unknown key 'group_sise' in \[algorithm\]\. Did you mean 'group_size'\?"),
        ("[engine]\nname = 2", r"engine\.name is 2\. Use text\."),
        ("engine = { name = 'toch' }", r"demo\.toml: engine: Unknown engine 'toch'\. Did you mean 'torch'\?"),
        ("sampler = 'epoch'", r"sampler: Unknown sampler 'epoch'\. Did you mean 'epochs'\?"),
        ("adapters = ['langchian']", r"adapters: Unknown adapter 'langchian'"),
        ("algorithm = { name = 'lightnin' }", r"algorithm: Unknown algorithm 'lightnin'\. Did you mean 'lightning'\?"),
        ("[algorithm]\nname = 'lightning'\ngroup_size = 1", r"demo\.toml: algorithm\.group_size is 1"),
        ("[algorithm.credit]\nname = 'discounted'\ngama = 1", r"Unknown key 'gama' in \[algorithm\.credit\]"),
        ("[algorithm]\nname='lightning'\ncredit={name='discounted', gama=1}", r"Unknown key 'gama' in \[algorithm\.credit\]"),
        ("[algorithm]\nname='lightning'\ncredit = { name = 'discounted', gamma = 3 }", r"credit\.gamma is 3"),
        ("[algorithm]\nname='lightning'\nloss = 'ppo'", r"algorithm\.loss: Unknown loss 'ppo'"),
        ("steps = = 3", r"demo\.toml: The file is not TOML: .*line 4"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_says_which_one_what_was_expected_and_what_was_given(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, LEAST + text)


def test_a_missing_key_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Missing 'model' at the top level\. Set it to text\."):
        load(tmp_path, "steps = 3")
    with pytest.raises(ConfigError, match=r"Missing 'tasks' at the top level\. Set it to text, or add a \[replay\] table"):
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
        ('tasks = "train.jsonl"', "tasks and replay are both set. A replay brings the tasks of its rollouts; remove tasks"),
        ('sampler = "in_order"', "sampler and replay are both set"),
        ('eval_tasks = "val.jsonl"', 'eval_tasks is set, but there is no agent to evaluate. Set agent = "module:function"'),
        ('agent = "m:f"', "agent is set, but with a replay it only acts on eval_tasks. Set eval_tasks, or remove agent"),
        ('command = "python act.py"', "command is set, but with a replay it only acts on eval_tasks"),
        ("collection = { max_staleness = 2 }", "collection.max_staleness is 2, but a replay starts and filters no rollouts"),
        ('collection = { filter = "nonzero_variance" }', "collection.filter is 'nonzero_variance', but a replay starts"),
        ('algorithm = { name = "sft", demonstrations = "m:f" }', "algorithm.demonstrations demonstrates replies while an agent runs"),
    ],
)
def test_what_does_not_go_with_a_source_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, f"{text}\n{SOURCE}")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            '{ store = "a.db", wait_for = 3 }',
            r"Unknown key 'wait_for' in \[replay\]\. Did you mean 'wait'\? Use one of store, mode, wait\.",
        ),
        ("{ wait = true }", r"Missing 'store' in \[replay\]"),
        (
            '{ store = "http://secret@host:8000" }',
            "replay.store has a token in it, and the run folder keeps its settings. Remove it and set AGL_TOKEN",
        ),
    ],
)
def test_a_wrong_source_is_named(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, SOURCE.replace('{ store = "sqlite:agl.db" }', table))


def test_an_agent_is_a_module_and_a_function(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent is 'solve'\. Use 'module:function'"):
        load(tmp_path, LEAST.replace("m:f", "solve"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: The config file cannot be read: No such file"):
        load_config(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xfc"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        load_config(tmp_path / "latin.toml")


# The parts of an algorithm, and plugins' settings


def test_a_function_gets_its_settings_as_keywords() -> None:
    assert make("credits", "identical", "algorithm.credit")(RolloutArrays.of([])).tolist() == []
    bound = make("advantages", {"name": "grpo", "std": False, "eps": 1}, "algorithm.advantage")
    assert bound.keywords == {"std": False, "eps": 1.0}
    assert make("credits", discounted, "algorithm.credit") is discounted
    with pytest.raises(ConfigError, match=r"algorithm\.advantage\.std is 'no'\. Use true or false \(whether"):
        make("advantages", {"name": "grpo", "std": "no"}, "algorithm.advantage")
    with pytest.raises(ConfigError, match=r"Missing 'name' in \[algorithm\.credit\]"):
        make("credits", {"gamma": 1.0}, "algorithm.credit")
    with pytest.raises(ConfigError, match=r"algorithm\.credit is 3\. Use a function, or the name of one\."):
        make("credits", 3, "algorithm.credit")


def test_the_rollouts_are_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"Unknown key 'returns' in \[algorithm\.advantage\]"):
        make("advantages", {"name": "rloo", "returns": 1}, "algorithm.advantage")


def test_a_function_of_ones_own_may_fail_without_rollouts_and_take_any_keyword() -> None:
    def own(trajectories: Any, **anything: Any) -> Any:
        return [np.zeros(1)] if trajectories[0] else anything

    assert make("credits", {"name": own, "x": 3}, "algorithm.credit").keywords == {"x": 3}


def test_a_loss_is_named_or_given() -> None:
    assert make("losses", "cispo", "algorithm.loss") == CISPO()
    assert make("losses", {"name": "ppo_clip", "clip_high": 1, "epochs": 2}, "algorithm.loss") == PPOClip(clip_high=1.0, epochs=2)
    assert make("losses", given := CISPO(epochs=3), "algorithm.loss") is given
    with pytest.raises(ConfigError, match=r"Unknown key 'cliphigh' in \[algorithm\.loss\]\. Did you mean 'clip_high'\?"):
        make("losses", {"name": "ppo_clip", "cliphigh": 1}, "algorithm.loss")


def test_an_engines_table_becomes_its_settings() -> None:
    engine = Part.parse("engines", {"name": "torch", "device": "cuda", "cache": "here"}, "engine", plugins())
    assert (engine.target, engine.make()) == (Engine, EngineSettings(device="cuda", cache=Path("here")))
    with pytest.raises(ConfigError, match=r"engine\.device is 'tpu'\. Did you mean 'cpu'\? Use 'cpu' or 'cuda'\."):
        make("engines", {"name": "torch", "device": "tpu"}, "engine")
    with pytest.raises(PluginError, match="`Settings` of engine 'broken'"):
        make("engines", {"name": "broken"}, "engine")
    with pytest.raises(PluginError, match=r"Engine 'stranger' is not a subclass of agentlightning\.contracts\.engine\.Engine\. Derive"):
        make("engines", {"name": "stranger"}, "engine")


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
    with pytest.raises(ConfigError, match=r"Unknown key 'sice' in \[a\.inner\]\. Did you mean 'size'\?"):
        build(Outer, {"inner": {"sice": 1}}, "a")
    with pytest.raises(ConfigError, match=r"Missing 'size' in \[inner\]\. Set it to a whole number\."):
        build(Outer, {"inner": {}})
    with pytest.raises(ConfigError, match=r"names\.a is 'b'\. Use a number\."):
        build(Outer, {"inner": {"size": 1}, "names": {"a": "b"}})
    with pytest.raises(ConfigError, match=r"a is 3\. Use a table\."):
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
        make("trainers", {"name": "torch"}, "trainer")


# Settings are checked by their types


@dataclass(frozen=True, kw_only=True)
class Checked(BaseSettings):
    table = "part"
    size: PositiveInt = 1
    rate: Annotated[float, Meta(gt=0, lt=1, description="0.1 is usual")] = 0.1
    share: UnitInterval | None = None
    mode: Literal["first", "second"] = "first"
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "part.size is 0. Use a whole number of at least 1."),
        ({"rate": 1.0}, "part.rate is 1.0. Use a number above 0 and below 1 (0.1 is usual)."),
        ({"rate": float("nan")}, "part.rate is nan. Use a number above 0 and below 1 (0.1 is usual)."),
        ({"share": 1.5}, "part.share is 1.5. Use a number from 0 to 1, or false for none."),
        ({"mode": "frist"}, "part.mode is 'frist'. Did you mean 'first'? Use 'first' or 'second'."),
        ({"names": ["a", 3]}, "part.names[1] is 3. Use text."),
    ],
)
def test_settings_made_in_python_are_checked_like_those_of_a_file(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as in_python:
        Checked(**settings)
    with pytest.raises(ConfigError) as in_file:
        build(Checked, settings, "part")
    assert str(in_python.value) == str(in_file.value) == message


def test_a_list_and_a_whole_number_become_what_the_types_say() -> None:
    checked = Checked(names=["a"], share=1)  # type: ignore[arg-type]
    assert (checked.names, type(checked.share)) == (("a",), float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr = 1e-5", r"Unknown key 'lr' at the top level\. It belongs to \[trainer\]\."),
        ("temperature = 0.5", r"Unknown key 'temperature' at the top level\. It belongs to \[sampling\]\."),
        ("workers = 2", r"It belongs to \[runner\]\."),
        ("group_size = 2", r"It belongs to \[algorithm\]\."),
        ("device = 'cpu'", r"It belongs to \[engine\] or \[trainer\]\."),
        ("[trainer]\nsteps = 2", r"Unknown key 'steps' in \[trainer\]\. It belongs to the top level, above the first \[table\]\."),
        ("[trainer]\nlearning_rate = 1", r"Unknown key 'learning_rate' in \[trainer\]\. Did you mean 'lr'\? Use one of name, train"),
        ("learning_rate = 1", r"Unknown key 'learning_rate' at the top level\. Did you mean 'lr' in \[trainer\]\?"),
        ("[sampling]\nmax_new_tokens = 1", r"Unknown key 'max_new_tokens' in \[sampling\]\. Did you mean 'max_tokens'\?"),
        ("algorithm = {name='grpo', advantag='rloo'}", r"Unknown key 'advantag' in \[algorithm\]\. Did you mean 'advantage'\?"),
        ("engine = 'torhc'", r"engine: Unknown engine 'torhc'\. Did you mean 'torch'\?"),
    ],
)
def test_a_misplaced_key_names_its_table(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(f'agent = "m:f"\ntasks = "t.jsonl"\nmodel = "m"\n{text}\n')
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_the_name_of_a_part_stands_for_its_table() -> None:
    config = build_config({**BASE, "engine": "vllm", "trainer": "verl", "runner": "local", "algorithm": "sft"})
    assert (config.engine, config.trainer, config.algorithm) == ({"name": "vllm"}, {"name": "verl"}, {"name": "sft"})
    assert config.runner.name == "local"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_settings_of_lightning(name: str) -> None:
    config = build_config({**BASE, "algorithm": name})
    check_names(config)
    assert config.algorithm == {"name": "lightning", **PRESETS[name]}
    changed = build_config({**BASE, "algorithm": {"name": name, "group_size": 3}})
    assert changed.algorithm == {**config.algorithm, "group_size": 3}


def test_presets_are_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "algorithms.md").read_text().partition("## Named algorithms")[2]
    for name, settings in PRESETS.items():
        [row] = re.findall(rf"^\| `{name}` \| (.*`\w+ = .*)\|$", page, re.MULTILINE)
        for key, value in settings.items():
            assert f"`{key} = {json.dumps(value)}`" in row


def test_a_file_is_no_module() -> None:
    with pytest.raises(ConfigError, match=r"'my_agent\.py:solve' names a file\. Write 'my_agent:solve' for its module\.$"):
        load_object("my_agent.py:solve")
    with pytest.raises(ConfigError, match=r"Write 'a:solve' for its module and run from 'x/y', or set path\.$"):
        load_object("x/y/a.py:solve")


def test_an_unknown_algorithm_is_compared_with_the_presets_too() -> None:
    with pytest.raises(ConfigError, match=r"Unknown algorithm 'gropo'\. Did you mean 'grpo'\? Use one of .*dr_grpo.*rloo"):
        Part.parse("algorithms", {"name": "gropo"}, "algorithm")


def test_a_value_in_place_of_a_list_is_shown_as_one() -> None:
    with pytest.raises(ConfigError, match=r"trackers is 'wandb'\. Write \[\"wandb\"\]\."):
        build(Config, {"model": "m", "trackers": "wandb"})


def test_a_longer_word_suggests_the_key_that_it_begins_with_and_lists_no_others() -> None:
    with pytest.raises(ConfigError, match=r"Unknown key 'evaluation' at the top level\. Did you mean 'eval'\? `agl config` lists all\.$"):
        build_config({"model": "m", "evaluation": {"every": 2}})
