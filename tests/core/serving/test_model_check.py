"""`agl models check`: a model's facts without its weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Gemma3TextConfig, LlamaConfig, MambaConfig

from agentlightning.cli.main import main
from agentlightning.contracts.rendering import RenderingSettings, save_rendering
from agentlightning.errors import ConfigError
from agentlightning.serving.model_check import ModelReport, check_model
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning_torch.testing import tiny_model

THINKING = (
    "{% set last = namespace(user=-1) %}{% for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}"
    "{% endif %}{% endfor %}{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% if message.reasoning_content and loop.index0 > last.user %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content or '' }}{% for call in message.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(folder: Path, template: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def fits(report: ModelReport) -> dict[str, str]:
    return {f"{backend.kind} {backend.name}": backend.fit.takes for backend in report.backends}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_check_loads_no_weights_and_says_what_a_run_would_do(tiny: Path) -> None:
    with_template(tiny, THINKING)
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    file = tiny / "model.safetensors"
    header = file.read_bytes()[:8]
    size = int.from_bytes(header, "little")
    file.write_bytes(file.read_bytes()[: 8 + size])  # the header is enough
    report = check_model(str(tiny))
    assert (report.facts.architecture, report.facts.parameters, report.facts.dtype) == ("LlamaForCausalLM", 107_200, "float32")
    assert report.full_bytes == 18 * 107_200
    assert report.lora_bytes is not None
    assert report.rendering is not None
    assert report.rendering.renderer == "template"
    assert report.rendering.example == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
    assert report.rendering.stops == ("'<|endoftext|>'", "'<|im_end|>'")
    assert report.rendering.turns == {
        "template": (("after a tool's result", "bridged"), ("after a new question", "rewritten: thinking")),
        "exact": (("after a tool's result", "bridged"), ("after a new question", "bridged")),
    }
    assert fits(report)["engine torch"] == fits(report)["trainer torch"] == "yes"


def test_settings_beside_the_weights_choose_the_renderer(tiny: Path) -> None:
    with_template(tiny, THINKING)
    save_rendering(tiny, RenderingSettings(history="exact"))
    report = check_model(str(tiny))
    assert report.rendering is not None
    assert report.rendering.short[1] == "every turn continues the sampled tokens"
    save_rendering(tiny, RenderingSettings(renderer="chatml"))
    report = check_model(str(tiny))
    assert report.rendering is not None
    assert report.rendering.why == "renderer = 'chatml' is set"
    assert report.rendering.tools == "a line of text"
    assert any("no tool calls" in note for note in report.rendering.notes)


def test_a_model_without_a_template_says_the_way_out(tiny: Path) -> None:
    with_template(tiny, None)
    report = check_model(str(tiny))
    assert report.rendering is None
    assert "Set chat_template to a Jinja file, or renderer = 'chatml'" in report.problem


def test_a_large_model_is_counted_by_its_configuration_alone(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    report = check_model(str(tmp_path))
    assert report.facts.size == "6.7B parameters"
    assert report.facts.kv_token == 4 * 32 * 32 * 128
    assert report.full_bytes == 18 * report.facts.parameters if report.facts.parameters else False
    assert "too large for the" in report.memory_note(10**15, serving=False)
    assert fits(report)["engine torch"] == "yes"


def test_an_architecture_that_the_engine_does_not_serve_says_no_and_the_way_out(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=4).save_pretrained(tmp_path)
    report = check_model(str(tmp_path))
    [engine] = [backend for backend in report.backends if (backend.kind, backend.name) == ("engine", "torch")]
    assert engine.fit.takes == "no", engine
    assert "Use another model" in engine.fit.note
    assert "agl-miniature" not in engine.fit.note


def test_an_architecture_with_windows_is_tried_out_small(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    Gemma3TextConfig().save_pretrained(tmp_path)
    assert fits(check_model(str(tmp_path)))["trainer torch"] == "yes"


def test_a_configuration_that_nobody_knows_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "brand_new"}')
    with pytest.raises(ConfigError, match="cannot read the configuration") as caught:
        check_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_command_prints_one_screen(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with_template(tiny, THINKING)
    monkeypatch.setattr(sys, "argv", ["agl", "models", "check", str(tiny)])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 40
    for expected in (
        "LlamaForCausalLM",
        "107.2K",
        "derived from the chat template",
        "<tool_call>",
        "rewritten: thinking",
        'Set history = "exact"',
    ):
        assert expected in " ".join(printed.split()), expected
    shutil.rmtree(tiny)
