"""`agl export` and `agl push`, on real runs and against a local hub with the hub's own client."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TOKEN, Hub, serve_hub
from huggingface_hub import constants
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.contracts.rendering import RenderingSettings, save_rendering
from agentlightning.errors import ConfigError
from agentlightning.serving.export import export_run
from agentlightning.serving.model_card import card_settings
from agentlightning.serving.model_origin import card_facts, model_origin
from agentlightning.serving.serve import served_model
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning_torch.testing import tiny_model

TASKS = [{"id": f"task-{n}", "question": f"Write line {n}."} for n in range(4)]
CARD = "---\nlicense: apache-2.0\nbase_model: some/model\n---\n\n# A model\n"


async def solve(task: Any, llm: agl.LLM) -> float:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        answer = await client.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": task["question"]}], max_tokens=6
        )
    return sum(letter.isalpha() for letter in answer.choices[0].message.content or "") / 6


def train(model: str, folder: Path, **trainer: Any) -> RunFolder:
    run = agl.train(
        solve, tasks=TASKS, eval_tasks=TASKS[:2], model=model, folder=folder, name="tiny", steps=2, tasks_per_step=2, progress=False,
        algorithm=agl.LightningRL(group_size=4), trainer={"name": "torch", "lr": 1e-2, **trainer}, eval={"samples": 1, "greedy": True},
    )  # fmt: skip
    return RunFolder.open(run.folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tiny_model(tmp_path_factory.mktemp("model") / "base").path)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(str(base), tmp_path_factory.mktemp("runs"), train="lora")


@pytest.fixture(scope="module")
def top_layer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(str(base), tmp_path_factory.mktemp("runs"), train="top:1")


def logits(folder: Path) -> torch.Tensor:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer("one two three", return_tensors="pt")).logits


@pytest.mark.parametrize("trained", ["run", "top_layer"])
def test_an_exported_run_loads_with_the_logits_of_its_checkpoint_and_holds_no_state_of_the_trainer(
    trained: str, request: pytest.FixtureRequest, base: Path, tmp_path: Path
) -> None:
    run: RunFolder = request.getfixturevalue(trained)
    exported = export_run(run, tmp_path / "model")
    checkpoint = run.path / str(run.read_result()["checkpoint"])
    torch.testing.assert_close(logits(exported.folder), logits(checkpoint))
    assert (logits(exported.folder) - logits(base)).abs().max() > 1e-3
    assert exported.step > 0
    files = {file.name for file in exported.folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md", "reward.png"} <= files
    assert not [name for name in files if name.startswith(("trainer", "run_state", "adapter"))]
    GenerationConfig.from_pretrained(exported.folder)
    messages = [{"role": "user", "content": "hello"}]
    rendered = [AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False) for folder in (exported.folder, base)]
    assert rendered[0] == rendered[1]


def test_an_exported_folder_is_served_and_trained_further(run: RunFolder, tmp_path: Path) -> None:
    folder = export_run(run, tmp_path / "model").folder
    served = served_model(str(folder), Progress())
    assert (served.files.path, served.files.name) == (str(folder), "model")
    again = train(str(folder), tmp_path / "again")
    assert again.read_result()["finished"]
    assert model_origin(str(folder)).hub_name == "some/model"  # what a further export names


def test_the_card_has_results_curves_settings_and_licence_and_no_path_of_this_machine(run: RunFolder, base: Path, tmp_path: Path) -> None:
    folder = export_run(run, tmp_path / "model").folder
    card, result = (folder / "README.md").read_text(), run.read_result()
    facts = card_facts(card)
    assert (facts["license"], facts["base_model"], facts["library_name"]) == ("apache-2.0", "some/model", "transformers")
    assert "The licence of base is `apache-2.0`. It applies to these weights too." in card
    before = result["eval"]["greedy"]["before"]
    assert f"| greedy | {before:.3f} | " in card
    assert "](reward.png)" in card
    assert "lr = 0.01" in card
    assert "- rollouts in training: " in card
    assert f"- agent: `{__name__}:solve`" in card
    for path in (run.path, base, tmp_path, Path.home(), Path.cwd()):
        assert str(path) not in card


def test_the_template_of_a_run_is_beside_the_exported_tokenizer(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "20261129-000000-copy")))
    result = copy.read_result()
    step = int(result["policy_step"]) or copy.steps()[-1]
    copy.write_result({**result, "checkpoint": str(copy.checkpoint(step).relative_to(copy.path)), "policy_step": step})
    template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    save_rendering(copy.checkpoint(step), RenderingSettings(chat_template=template))
    folder = export_run(copy, tmp_path / "model").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<user>hello"
    assert served_model(str(folder), Progress()).rendering.chat_template == template


def test_the_model_before_training_is_exported_as_the_run_rendered_it(run: RunFolder, base: Path, tmp_path: Path) -> None:
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "20261129-000000-copy")))
    template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    config = copy.config.read_text()
    copy.config.write_text(f'chat_template = "{tmp_path / "own.jinja"}"\n{config}')
    copy.write_result({**copy.read_result(), "checkpoint": str(base), "policy_step": 0})
    folder = export_run(copy, tmp_path / "model").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<user>hello"
    assert served_model(str(folder), Progress()).rendering.chat_template == template


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": CARD}, "apache-2.0"),
        ({"LICENSE": "                 Apache License\n           Version 2.0, January 2004\n"}, "apache-2.0"),
        ({"LICENSE": "MIT License\n\nCopyright"}, "mit"),
        ({"LICENSE": "You may not share this."}, "unknown"),
        ({"README.md": "---\nlicense: [\n---\n"}, "unknown"),
        ({"README.md": "# No facts at its head\n", "LICENSE": "MIT License\n"}, "mit"),
        ({}, "unknown"),
    ],
)
def test_the_licence_is_that_of_the_card_or_the_file_and_nothing_is_guessed(files: dict[str, str], licence: str, tmp_path: Path) -> None:
    tiny_model(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert model_origin(str(tmp_path)).licence == licence


def test_settings_of_a_card_hold_no_secret_and_no_path() -> None:
    config = {"agent": "a:b", "command": "node /srv/me/agent.js --fast", "tasks": "/srv/me/train.jsonl", "folder": "/srv/me/runs",
              "model": "hf/owner", "engine": {"name": "x:Y", "api_key": "secret"}, "replay": {"store": "sqlite:/srv/me/agl.db"},
              "eval_tasks": "hf:openai/gsm8k:main:test"}  # fmt: skip
    settings = card_settings(config)
    assert settings["command"] == "node agent.js --fast"
    assert settings["tasks"] == "train.jsonl"
    assert settings["eval_tasks"] == "hf:openai/gsm8k:main:test"
    assert settings["engine"] == {"name": "x:Y", "api_key": "***"}
    assert settings["replay"] == {"store": "sqlite:agl.db"}
    assert "folder" not in settings


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("full", "exists and is not empty. Name a new folder."),
        ("model.gguf", "run llama.cpp's convert_hf_to_gguf.py on it."),
    ],
)
def test_a_folder_that_cannot_be_exported_to_is_refused(folder: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match=re.escape(said)):
        export_run(RunFolder(tmp_path / "no-run"), tmp_path / folder)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


def agl_push(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "agentlightning", "push", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **own}, check=False, cwd=home)


def test_push_uploads_what_export_writes_to_a_private_repository(run: RunFolder, hub: Hub, tmp_path: Path) -> None:
    pushed = agl_push(hub, tmp_path, str(run.path), "me/agent-model")
    assert pushed.returncode == 0, pushed.stderr
    assert f"uploaded to {hub.address}/me/agent-model" in pushed.stdout
    assert hub.repositories["me/agent-model"].get("private", hub.repositories["me/agent-model"].get("visibility")) in (True, "private")
    exported = export_run(run, tmp_path / "model").folder
    assert hub.files == {file.name: file.read_bytes() for file in exported.iterdir()}


def test_push_uploads_an_edited_folder_to_a_public_repository_as_it_is(run: RunFolder, hub: Hub, tmp_path: Path) -> None:
    folder = export_run(run, tmp_path / "model").folder
    (folder / "README.md").write_text(CARD + "Mine.\n")
    assert agl_push(hub, tmp_path, str(folder), "me/agent-model", "--public").returncode == 0
    assert hub.repositories["me/agent-model"].get("private", hub.repositories["me/agent-model"].get("visibility")) in (
        False,
        None,
        "public",
    )
    assert hub.files["README.md"] == (CARD + "Mine.\n").encode()


@pytest.mark.parametrize("part", ["", "checkpoints/step-00002", "weights and records"])
def test_push_refuses_a_folder_that_is_no_export(run: RunFolder, hub: Hub, tmp_path: Path, part: str) -> None:
    folder = run.path.parent if not part else run.path / part
    if " " in part:
        folder = export_run(run, tmp_path / "model").folder
        shutil.copy(run.store, folder / "records.db")
    pushed = agl_push(hub, tmp_path, str(folder), "me/agent-model", "--public")
    assert pushed.returncode == 2, pushed.stderr
    assert "is no folder that `agl export` wrote" in " ".join(pushed.stderr.split())
    assert not hub.files
    assert not hub.repositories


@pytest.mark.parametrize(
    ("name", "token", "code", "said"),
    [
        ("me/model", None, 2, "There is no token for the Hugging Face hub. Run `hf auth login`, or set HF_TOKEN."),
        ("model", TOKEN, 2, "'model' is no name of a repository. Use OWNER/NAME."),
        ("me/mo del", TOKEN, 2, "'me/mo del' is no name of a repository: "),
        ("other/model", TOKEN, 1, "The hub refused other/model: You don't have the rights to create a model under this namespace."),
        ("me/model", "hf_wrong", 1, "The hub refused me/model: Invalid user token."),
        ("gone/model", TOKEN, 1, "http://127.0.0.1:9 cannot be reached: [Errno 111] Connection refused. Check the network,"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    name: str, token: str | None, code: int, said: str, base: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9" if name.startswith("gone/") else hub.address)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    pushed = CliRunner().invoke(build(), ["push", str(base), name])
    assert pushed.exit_code == code, pushed.output
    assert said in " ".join(pushed.output.split())
    assert hub.files == {}
