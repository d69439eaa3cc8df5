"""The settings of the renderer reach every command, and lie beside the trained weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build as commands
from agentlightning.cli.rendering import RenderingOptions
from agentlightning.config.json_schema import config_schema
from agentlightning.config.schema import Config, load_config
from agentlightning.config.toml import to_toml
from agentlightning.contracts.rendering import RenderingChoices, RenderingSettings, save_rendering, saved_rendering
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.serving.serve import served_model
from agentlightning.settings import build
from agentlightning.stores.common import open_store
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.score import rollout_config
from agentlightning.types import Completion
from agentlightning_benchmarks.bench.command import Options, order_of
from agentlightning_benchmarks.bench.phases import create, open_order

MOOD = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ mood }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AGENT = """
from openai import AsyncOpenAI

async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        answer = await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}], max_tokens=6)
    return float(len(answer.choices[0].message.content or "") > 3)
"""
KEYS = 'renderer = "template"\nchat_template = "mood.jinja"\nhistory = "exact"\nspecial_tokens = true\n'
LEAST = {"agent": "mood_agent:solve", "tasks": "tasks.jsonl", "model": "m"}


@pytest.fixture
def folder(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an agent, tasks, a template, and a config file that names them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mood_agent.py").write_text(AGENT)
    (tmp_path / "tasks.jsonl").write_text('"one"\n"two"\n')
    (tmp_path / "mood.jinja").write_text(MOOD)
    (tmp_path / "plain.toml").write_text(
        f'agent = "mood_agent:solve"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nfolder = "runs"\nsteps = 1\ntasks_per_step = 1\n'
    )
    (tmp_path / "mood.toml").write_text(f'{KEYS}{(tmp_path / "plain.toml").read_text()}[template_arguments]\nmood = "calm"\n')
    return tmp_path


def prompts(run: Path, decode: Callable[[Any], str]) -> set[str]:
    """The rendered prompts of a run."""

    async def read() -> list[Completion]:
        store = open_store(RunFolder.open(run).store_address)
        try:
            states, _ = await store.list()
            records = [await store.read(state.rollout.id) for state in states]
        finally:
            await store.close()
        return [completion for _, attempts in records for attempt in attempts for completion in attempt.completions]

    return {decode(completion.prompt_ids.tolist()) for completion in asyncio.run(read())}


@pytest.fixture
def decode(model: str) -> Callable[[Any], str]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model).decode


def test_a_config_has_the_settings_of_the_renderer_and_keeps_them(folder: Path, model: str) -> None:
    config = load_config(folder / "mood.toml")
    expected = RenderingSettings("template", MOOD, {"mood": "calm"}, "exact", special_tokens=True)
    assert config.rendering(model) == expected
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "config.toml").write_text(to_toml(config))
    assert load_config(folder / "elsewhere" / "config.toml").rendering(model) == expected
    assert load_config(folder / "plain.toml").rendering(model) == RenderingSettings()
    Draft202012Validator(config_schema()).validate(
        {**LEAST, "renderer": "chatml", "history": "exact", "special_tokens": True, "template_arguments": {"a": [1]}}
    )
    assert not Draft202012Validator(config_schema()).is_valid({**LEAST, "history": "no"})


def test_a_template_that_cannot_be_read_is_an_error_before_a_model_loads(folder: Path, model: str) -> None:
    with pytest.raises(ConfigError, match=r"chat_template is '.*none.jinja', and reading it fails"):
        agl.train("mood_agent:solve", tasks=["one"], model=model, chat_template="none.jinja", folder=str(folder / "runs"), progress=False)
    assert not (folder / "runs").exists()


def test_what_a_user_sets_goes_over_what_lies_beside_the_weights(tmp_path: Path) -> None:
    saved = RenderingSettings("chatml", None, {"a": 1}, "exact", special_tokens=True)
    save_rendering(tmp_path, saved)
    assert saved_rendering(tmp_path) == saved
    assert RenderingChoices().over(saved) == saved
    changed = RenderingChoices("auto", template_arguments={"b": 2}, history="template", special_tokens=False).over(saved)
    assert changed == RenderingSettings("auto", None, {"b": 2}, "template", special_tokens=False)
    assert build(Config, {"agent": "a:b", "tasks": "t", "model": "m", "history": "template"}).rendering(str(tmp_path)).history == "template"


def test_a_trained_model_renders_as_in_its_run(folder: Path, decode: Callable[[Any], str]) -> None:
    """`agl.train` takes the settings; the checkpoint has them, and a next run, `agl serve` and `agl rollout` follow it."""
    plain = load_config(folder / "plain.toml")
    run = agl.train(
        "mood_agent:solve", tasks=["one"], model=plain.model, steps=1, tasks_per_step=1, folder=str(folder / "runs"), progress=False,
        algorithm=agl.LightningRL(group_size=2), chat_template="mood.jinja", template_arguments={"mood": "calm"}, history="exact",
    )  # fmt: skip
    assert prompts(run.folder, decode) == {"<|im_start|>user calm\none<|im_end|>\n<|im_start|>assistant\n"}
    (folder / "mood.jinja").unlink()
    assert saved_rendering(run.checkpoint) == RenderingSettings("auto", MOOD, {"mood": "calm"}, "exact")
    assert served_model(str(run.folder), Progress()).rendering == saved_rendering(run.checkpoint)
    assert served_model(str(run.checkpoint), Progress()).rendering == saved_rendering(run.checkpoint)
    changed = served_model(str(run.folder), Progress(), RenderingChoices(template_arguments={"mood": "wild"}))
    assert changed.rendering == RenderingSettings("auto", MOOD, {"mood": "wild"}, "exact")
    result = CliRunner().invoke(
        commands(), ["rollout", "plain.toml", "--limit", "1", "--model", str(run.checkpoint), "--template-arguments", '{"mood": "wild"}']
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    [scored] = set((folder / "runs").glob("*/")) - {run.folder}
    assert prompts(scored, decode) == {"<|im_start|>user wild\none<|im_end|>\n<|im_start|>assistant\n"}


def test_the_options_have_the_names_of_the_keys(folder: Path) -> None:
    keys = RenderingOptions(
        renderer="chatml", chat_template="mood.jinja", template_arguments='{"mood": 1}', history="exact", special_tokens=False
    ).keys()
    template = str(folder / "mood.jinja")
    assert keys == {
        "renderer": "chatml", "chat_template": template, "template_arguments": {"mood": 1}, "history": "exact", "special_tokens": False,
    }  # fmt: skip
    assert RenderingOptions().keys() == {}
    with pytest.raises(ConfigError, match=r"--template-arguments is '\[1\]'. Use a JSON object"):
        RenderingOptions(template_arguments="[1]").keys()
    for command in ("rollout", "serve", "bench"):
        result = CliRunner().invoke(commands(), [command, "--help"], env={"COLUMNS": "200"})
        for key in ("renderer", "chat-template", "template-arguments", "history", "special-tokens"):
            assert f"--{key}" in result.output, (command, key)


def test_a_benchmark_keeps_the_settings_of_the_renderer(folder: Path) -> None:
    order = order_of(Options(), RenderingOptions(renderer="chatml", template_arguments='{"mood": "calm"}'), "math")
    assert open_order(create(order, folder)).rendering == {"renderer": "chatml", "template_arguments": {"mood": "calm"}}


def test_a_server_elsewhere_renders_for_itself_so_a_setting_is_refused(folder: Path) -> None:
    table = '[engine]\nname = "upstream"\nurl = "http://127.0.0.1:9/v1"\n'
    (folder / "far.toml").write_text(f'renderer = "chatml"\n{(folder / "plain.toml").read_text()}{table}')
    with pytest.raises(UnsupportedSetting, match="renderer has no effect: the server of engine 'upstream' renders the messages"):
        rollout_config(load_config(folder / "far.toml"))
    result = CliRunner().invoke(commands(), ["serve", "--upstream", "http://127.0.0.1:9/v1", "--history", "exact"])
    assert result.exit_code == 2
    assert "--history has no effect with --upstream" in result.output
