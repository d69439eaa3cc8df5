from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agentlightning.config.json_schema import config_schema
from agentlightning.config.schema import load_config

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "benchmarks").glob("*/*/*.toml"))
LEAST = 'agent = "m:f"\ntasks = "train.jsonl"\nmodel = "smollm2-135m"\n'


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def errors(validator: Draft202012Validator, text: str) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(tomllib.loads(text))]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_that_ships_fits_the_schema(validator: Draft202012Validator, preset: Path) -> None:
    assert errors(validator, preset.read_text()) == []


def test_there_are_presets_to_validate() -> None:
    assert len(PRESETS) >= 9


@pytest.mark.parametrize(
    "text",
    [
        'steps = 3\nagents = ["write*"]\nstep_rewards = { tool_failed = -0.2 }',
        'sampler = "curriculum"\nadapters = ["langchain"]\n[sampling]\nmax_tokens = false',
        'algorithm = { name = "lightning", advantage = { write = "grpo", "*" = { name = "rloo" } } }',
        'algorithm = { name = "lightning", credit = "my.module:credit", loss = { name = "ppo_clip", correction = "tis" } }',
        'algorithm = { name = "lightning", loss = { name = "ppo_clip", dual_clip = false } }',
        'algorithm = { name = "lightning", loss = { name = "ppo_clip", correction = { name = "tis", clip = 3 } } }',
        'engine = { name = "my.module:Engine", anything = 3 }\ntrainer = { name = "torch", train = "top:8", betas = [0.9, 0.99] }',
        "[trainer]\nlr = 1e-5\n[engine]\nmax_batch = 2\n[algorithm]\ngroup_size = 4",
        'collection = { filter = { name = "difficulty", low = 0.1, high = 0.9 } }',
    ],
)
def test_right_settings_fit(validator: Draft202012Validator, text: str) -> None:
    assert errors(validator, LEAST + text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("stepz = 3", "$: "),
        ("steps = 0", "$.steps"),
        ("steps = 'ten'", "$.steps"),
        ("agent_ = 'm:f'", "$: "),
        ("sampler = 'epoch'", "$.sampler"),
        ("adapters = ['langchian']", "$.adapters[0]"),
        ("[sampling]\ntemperature = 0", "$.sampling.temperature"),
        ("[runner]\non_failure = 'ignore'", "$.runner.on_failure"),
        ("[engine]\nmax_bach = 2", "$.engine: Additional properties are not allowed ('max_bach' was unexpected)"),
        ("engine = { name = 'torch', max_batch = 0 }", "$.engine.max_batch: 0 is less than"),
        ("engine = { name = 'torch', max_bach = 4 }", "$.engine: Additional properties are not allowed ('max_bach' was unexpected)"),
        ("engine = { name = 'toch' }", "$.engine.name: "),
        ("trainer = { name = 'torch', train = 'top:0' }", "$.trainer"),
        ("trainer = { name = 'torch', betas = [0.9] }", "$.trainer.betas: "),
        ("algorithm = { name = 'lightning', credit = { name = 'discounted', gama = 1 } }", "$.algorithm.credit: "),
        ("algorithm = { name = 'lightning', loss = { name = 'ppo_clip', correction = { name = 'tis', clip = 0 } } }", "$.algorithm"),
        ("algorithm = { name = 'lightning', advantage = { write = 'grop' } }", "$.algorithm.advantage.write: "),
        ("name = 'a/b'", "$.name"),
        ("command = 'sh agent.sh'", "$: "),
    ],
)  # fmt: skip
def test_wrong_settings_do_not(validator: Draft202012Validator, text: str, place: str) -> None:
    assert [error for error in errors(validator, LEAST + text) if error.startswith(place)]


def test_a_file_without_a_model_does_not_fit(validator: Draft202012Validator) -> None:
    assert errors(validator, 'agent = "m:f"\ntasks = "t.jsonl"') == ["$: 'model' is a required property"]


def test_a_file_has_an_agent_or_a_command_unless_it_replays_rollouts(validator: Draft202012Validator) -> None:
    head = 'model = "smollm2-135m"\n'
    assert len(errors(validator, head)) == 2
    assert len(errors(validator, head + 'tasks = "t.jsonl"')) == 1
    assert len(errors(validator, head + 'agent = "m:f"')) == 1
    assert errors(validator, head + 'tasks = "t.jsonl"\ncommand = "sh agent.sh"') == []
    assert errors(validator, head + 'replay = { store = "a.db" }') == []
    assert len(errors(validator, head + 'agent = "m:f"\ncommand = "sh x.sh"\nreplay = { store = "a.db" }')) == 1


def test_the_default_of_a_setting_and_its_description_are_those_of_the_class() -> None:
    schema: dict[str, Any] = config_schema()
    assert schema["properties"]["steps"] == {"type": "integer", "minimum": 1, "default": 10, "description": "Training steps."}


def test_a_file_may_name_its_schema_in_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"#:schema ./config.schema.json\n{LEAST}")
    assert load_config(file).model == "smollm2-135m"


def test_the_schema_has_the_settings_of_engines_and_trainers_and_imports_none_of_their_libraries() -> None:
    program = (
        "import sys; from agentlightning.config.json_schema import config_schema; text = str(config_schema()['$defs']); "
        "assert 'memory_gb' in text and 'lora_rank' in text; "
        "assert not {'torch', 'transformers', 'vllm', 'verl', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
