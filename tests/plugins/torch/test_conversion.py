"""Bringing a model as a GGUF file or as a LoRA adapter: real files, converted once into the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from gguf_files import write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from agentlightning.config.models import find_model
from agentlightning.contracts.rendering import RenderingSettings, save_rendering, saved_rendering
from agentlightning.errors import ConfigError
from agentlightning.serving.model_origin import model_origin
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning_torch.conversion import _llama3_factors
from agentlightning_torch.testing import tiny_model

TEXT = "<|im_start|>user\nHow much is 12 + 345?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "llama"
    tiny_model(folder)
    return folder


def logits(folder: str | Path, tokens: str | Path | None = None) -> torch.Tensor:
    """Of a text, with the model's own tokenizer or another folder's."""
    tokenizer = AutoTokenizer.from_pretrained(tokens or folder)
    ids = tokenizer.encode(TEXT, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


def test_a_gguf_file_is_the_same_model_with_the_same_tokenizer(llama: Path, tmp_path: Path) -> None:
    found = find_model(str(write_gguf(llama, tmp_path / "tiny.gguf", eot=0)))
    assert found.name == "tiny"
    torch.testing.assert_close(logits(found.path), logits(llama), atol=1e-5, rtol=0)
    own, source = AutoTokenizer.from_pretrained(found.path), AutoTokenizer.from_pretrained(llama)
    assert own.encode(TEXT) == source.encode(TEXT)
    assert own.chat_template == source.chat_template
    assert GenerationConfig.from_pretrained(found.path).eos_token_id == [source.eos_token_id, 0]
    assert AutoConfig.from_pretrained(found.path).dtype == torch.float32


def test_the_licence_and_the_base_that_a_gguf_file_names_are_known_to_a_model_card(llama: Path, tmp_path: Path) -> None:
    file = write_gguf(llama, tmp_path / "tiny.gguf", licence="mit", base="https://hub.example/some/model")
    origin = model_origin(str(file))
    assert (origin.name, origin.hub_name, origin.licence) == ("tiny.gguf", "some/model", "mit")
    assert model_origin(str(write_gguf(llama, tmp_path / "other.gguf"))).licence == "unknown"


def test_an_untied_qwen2_in_eight_bits_keeps_its_own_head(tmp_path: Path) -> None:
    source = tmp_path / "qwen"
    tokenizer = make_tokenizer(source, merges=[("o", "w"), ("H", "ow"), ("1", "2"), ("3", "4")])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(source)
    found = find_model(str(write_gguf(source, tmp_path / "qwen.gguf", rule="qwen2", quantised=True)))
    assert AutoConfig.from_pretrained(found.path).dtype == torch.bfloat16
    assert not AutoConfig.from_pretrained(found.path).tie_word_embeddings
    read = AutoTokenizer.from_pretrained(found.path).encode("How 12 345")
    assert read == tokenizer.convert_tokens_to_ids(["How", "Ġ", "1", "2", "Ġ", "3", "4", "5"])  # Qwen2 splits digits
    expected = logits(source, found.path)  # some releases of transformers read the source's tokenizer without Qwen2's rule for digits
    assert (logits(found.path) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_gguf_file_is_converted_once_by_its_content(llama: Path, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(llama, tmp_path / "tiny.gguf")
    described = find_model(str(file), weights=False)
    assert not list(Path(described.path).glob("*.safetensors"))
    assert (Path(described.path) / "tokenizer.json").is_file()
    assert AutoConfig.from_pretrained(described.path).architectures == ["LlamaForCausalLM"]
    first = find_model(str(file))
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(file, tmp_path / "elsewhere" / "renamed.gguf")
    assert find_model(str(tmp_path / "elsewhere")).path == first.path
    assert find_model(str(file), weights=False).path == first.path
    write_gguf(llama, file, eot=0)
    assert find_model(str(file)).path != first.path
    assert not [folder for folder in (cache / "converted").iterdir() if folder.name.startswith(".")]


def test_what_a_gguf_file_does_not_say_comes_from_the_files_beside_it(llama: Path, tmp_path: Path) -> None:
    file = write_gguf(llama, tmp_path / "tiny.gguf", rule="brand-new")
    with pytest.raises(ConfigError, match=r"'brand-new', which is not known here\. Put the tokenizer\.json"):
        find_model(str(file))
    shutil.copy(llama / "tokenizer.json", tmp_path)
    shutil.copy(llama / "tokenizer_config.json", tmp_path)
    assert AutoTokenizer.from_pretrained(find_model(str(file)).path).encode(TEXT) == AutoTokenizer.from_pretrained(llama).encode(TEXT)
    save_rendering(tmp_path, RenderingSettings(renderer="text"))  # after the first conversion
    assert saved_rendering(Path(find_model(str(file)).path)).renderer == "text"


def test_position_factors_of_llama_3_survive_and_others_are_refused(llama: Path, tmp_path: Path) -> None:
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_theta": 10000.0}
    found = find_model(str(write_gguf(llama, tmp_path / "three.gguf", rope_factors=_llama3_factors(rope, 8))))
    source = AutoModelForCausalLM.from_pretrained(llama)
    source.config.rope_parameters = {"rope_type": "llama3", **rope}
    source.save_pretrained(tmp_path / "three")
    make_tokenizer(tmp_path / "three")
    torch.testing.assert_close(logits(found.path), logits(tmp_path / "three"), atol=1e-5, rtol=0)
    assert (logits(found.path) - logits(llama)).abs().max() > 1e-3
    with pytest.raises(ConfigError, match=r"not those of Llama 3\. Put the config\.json"):
        find_model(str(write_gguf(llama, tmp_path / "odd.gguf", rope_factors=np.linspace(1, 9, 8))))


def test_unusable_gguf_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nothing")
    (tmp_path / "big-00001-of-00002.gguf").write_bytes(b"GGUF")
    for name, expected in (
        ("broken.gguf", "is not a readable GGUF file"),
        (str(tmp_path), "several GGUF files: big-00001-of-00002.gguf, broken.gguf"),
        ("big-00001-of-00002.gguf", "Join the parts"),
    ):
        with pytest.raises(ConfigError, match=expected):
            find_model(name)


def adapter_of(base: Path, folder: Path, named: str) -> torch.Tensor:
    """Save an adapter with random weights, and return its logits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": named}))
    ids = AutoTokenizer.from_pretrained(base).encode(TEXT, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        return adapted.eval()(ids).logits


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_adapter_is_merged_into_its_base_once(llama: Path, tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    if kind == "gguf":
        write_gguf(llama, tmp_path / "base.gguf")
    expected = adapter_of(llama, tmp_path / "adapter", "../base.gguf" if kind == "gguf" else "../base")
    settings = RenderingSettings(template_arguments={"enable_thinking": False})
    save_rendering(tmp_path / "adapter", settings)
    described = find_model("adapter", weights=False)
    assert not list(Path(described.path).glob("*.safetensors"))
    found = find_model("adapter")
    assert found.name == "adapter"
    torch.testing.assert_close(logits(found.path), expected, atol=1e-4, rtol=0)
    assert (logits(llama) - expected).abs().max() > 0.1
    assert saved_rendering(Path(found.path)) == settings
    assert find_model("adapter").path == found.path


def test_an_adapter_without_its_base_names_the_base_and_the_way_out(llama: Path, tmp_path: Path) -> None:
    adapter_of(llama, tmp_path / "adapter", "someone/base-model")
    with pytest.raises(ConfigError, match=r"needs its base model 'someone/base-model'.*HF_HUB_OFFLINE is set\. Name a folder") as caught:
        find_model("adapter")
    assert "\n" not in str(caught.value)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match="names no base model"):
        find_model("adapter")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"'someone/model' is not in the cache, and http://127\.0\.0\.1:9 cannot be reached") as caught:
        find_model("someone/model")
    assert "\n" not in str(caught.value)


def test_a_model_in_the_cache_of_the_hub_needs_no_network(llama: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "hub" / "models--someone--tiny"
    shutil.copytree(llama, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    code = "from agentlightning.config.models import find_model; print(find_model('someone/tiny'))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub")}  # read when its library is imported
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert f"name='someone/tiny', path='{repository / 'snapshots' / 'abc'}'" in printed
    # A run that keeps the model before training names its folder, and its evaluations are shared.
    code = (
        "from agentlightning.config.models import model_folder as f; print(f('someone/tiny'), f('someone/other'), f('/gone/model'), f(''))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert printed.split() == [str(repository / "snapshots" / "abc"), "None", "None", "None"]
