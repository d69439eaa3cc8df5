"""Tokens that a model has not learned, found in its weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from template_world import SEARCH, TEMPLATES, make_tokens

from agentlightning.contracts.engine import EngineInfo
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway.rendering.learned import unlearned
from agentlightning.gateway.rendering.load import load_rendering
from agentlightning.gateway.rendering.renderer import Conversation

MARK = "<tool_call>"
ROWS, UNUSED = 400, 40


def weights(folder: Path, unlearned: list[int], *, name: str = "lm_head.weight", dtype: torch.dtype = torch.bfloat16) -> None:
    """The output embedding of a model. Its last rows, and those of `unlearned`, are alike but for noise."""
    torch.manual_seed(0)
    rows = torch.randn(ROWS, 32)
    alike = [*unlearned, *range(ROWS - UNUSED, ROWS)]
    rows[alike] = torch.randn(32) * 0.3 + torch.randn(len(alike), 32) * 1e-4
    inputs = {"model.embed_tokens.weight": torch.randn(ROWS, 32).to(dtype)} if name == "lm_head.weight" else {}
    save_file({**inputs, name: rows.to(dtype)}, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_alike_are_tokens_that_no_training_text_had(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    weights(tmp_path, [7, 9], name=name, dtype=dtype)
    assert unlearned(tmp_path, {7, 8, 9, 100, ROWS + 5}) == {7, 9}


@pytest.mark.parametrize("content", [None, b"", b"not a tensor file at all", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_weights_that_cannot_be_read_say_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert unlearned(tmp_path, {1}) == set()
    assert unlearned(tmp_path / "missing", {1}) == set()


def model(folder: Path, *, learned: bool) -> Any:
    """A model whose template begins calls with `<tool_call>`, one token."""
    tokens = make_tokens(folder, TEMPLATES["hermes"])
    tokens.tokenizer.add_tokens([MARK], special_tokens=True)
    tokens.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    weights(folder, [] if learned else [tokens.tokenizer.convert_tokens_to_ids(MARK)])
    return EngineInfo("m", str(folder), 1000)


def test_a_model_that_never_learned_its_mark_calls_tools_in_text_and_is_told_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Conversation([{"role": "user", "content": "q"}], [SEARCH])
    info = model(tmp_path, learned=False)
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        rendering = load_rendering(info)
        assert not caplog.messages
        prompts = [rendering.decode(rendering.renderer.prompt(asked)) for _ in range(2)]
    assert rendering.name == "text"
    assert MARK not in prompts[0]
    assert "CALL " in prompts[0]
    [warning] = caplog.messages
    assert f"has not learned {MARK}" in warning
    assert load_rendering(info, RenderingSettings("template")).name == "template"
    assert load_rendering(info, RenderingSettings("text")).name == "text"
    assert load_rendering(model(tmp_path, learned=True)).name == "template"
