"""Tokenizers in SentencePiece's style: a space before texts, byte fallback, marks that swallow the newline after them."""

from __future__ import annotations

from typing import Any

import pytest
from template_world import make_renderer, sampled
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentlightning.gateway.rendering.renderer import Conversation
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.types import ints
from gateway_house import user

INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} "
    "{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ '### ' + m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
TEMPLATES = {"instruct": INSTRUCT, "turns": TURNS, "plain": PLAIN}


def make_sentencepiece(kind: str, template: str) -> Any:
    """A tiny tokenizer: `llama` prepends a space to every text, `mistral` to the first, `gemma` to none."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789[]/<>|_{}\"':,.!?()\\=-#\n"
    merges = [("▁", "h"), ("h", "i"), ("▁", "hi"), ("a", "b"), ("▁", "a"), ("\n", "\n"), ("▁", "▁")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *(left + right for left, right in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "mistral":
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if kind == "llama" else spaces
    backend.decoder = decoders.Sequence(steps if kind == "gemma" else [*steps, decoders.Strip(" ", 1, 0)])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    marks = [AddedToken("<end>", rstrip=True, special=True, normalized=False), AddedToken("<start>", special=True, normalized=False)]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma"])
def test_a_bridge_ends_with_the_ids_that_the_tokenizer_gives_the_whole_conversation(kind: str, template: str) -> None:
    tokenizer = make_sentencepiece(kind, TEMPLATES[template])
    tokens = Tokens(tokenizer)
    renderer = make_renderer(tokens, [tokenizer.convert_tokens_to_ids("<end>" if template == "turns" else "</s>")])
    prompt = renderer.prompt(Conversation([user("hi é ab")]))
    assert prompt == list(tokenizer.apply_chat_template([user("hi é ab")], add_generation_prompt=True, return_dict=False))
    text = tokenizer.convert_tokens_to_ids(["▁hi", "ab"])
    content = renderer.parse(text, tokens.decode(text), ints(prompt), [], end="whole", hidden=None).content
    assert content.strip() == "hiab"
    messages = [user("hi é ab"), {"role": "assistant", "content": content}, user("\n\nab  x")]
    rendered = renderer.prompt(Conversation(messages))
    for ids in (text, [*text, renderer.stop_ids[0]]):
        bridge = renderer.bridge(sampled(renderer, prompt, ids), Conversation(messages), 2)
        assert bridge.cause == "bridged"
        assert bridge.ids is not None
        shared = bridge.ids[1:] if template == "plain" and len(ids) > len(text) and kind == "llama" else bridge.ids
        assert list(shared) == rendered[len(rendered) - len(shared) :]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma"])
def test_marks_in_a_message_stay_plain_text(kind: str) -> None:
    tokenizer = make_sentencepiece(kind, TURNS)
    renderer = make_renderer(Tokens(tokenizer))
    ids = renderer.prompt(Conversation([user("a <end> <s> b")]))
    assert ids.count(tokenizer.convert_tokens_to_ids("<end>")) == 1
    assert ids.count(tokenizer.bos_token_id) == 1
    assert "<end>" in Tokens(tokenizer).decode(ids[:-12])
