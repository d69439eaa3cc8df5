"""The tokenizer of a GGUF file. The file names the rule that splits a text into words; the rules of byte-level models are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agentlightning.errors import ConfigError

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: special ones, and those that are found in the text before it is split."""
DIGITS = r"\p{N}"
THREE_DIGITS = r"\p{N}{1,3}"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = (
    r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{tail}"
    r"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{tail}"
    r"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = WORDS.format(digits=THREE_DIGITS)
QWEN2 = WORDS.format(digits=DIGITS)
TEKKEN = CASED.format(tail="", digits=DIGITS)
GPT4O = CASED.format(tail=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", digits=THREE_DIGITS)
SPLITS: dict[str, str | None] = {
    "gpt-2": None, "default": None, "smollm": None,
    "llama3": LLAMA3, "llama-v3": LLAMA3, "llama-bpe": LLAMA3, "falcon3": LLAMA3, "smaug-bpe": LLAMA3, "dbrx": LLAMA3,
    "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "megrez": QWEN2,
    "tekken": TEKKEN, "gpt-4o": GPT4O, "llama4": GPT4O,
}  # fmt: skip
"""The pattern of words by the name in the file. None: GPT-2's, which the byte-level step has built in."""
DIGITS_APART = ("smollm",)
KEEP_WORDS = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""A word of the vocabulary is one token, even if merges do not lead to it."""
COMPOSED = ("qwen2", "deepseek-r1-qwen")
"""Texts are in Unicode's composed form first."""
NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(gguf: Path, fields: dict[str, Any], context: int | None) -> Any:
    """Build the tokenizer. Raises `ConfigError` for a kind whose words are not known."""
    kind, rule = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        tokenizer = _sentencepiece(gguf, fields)
    elif rule in SPLITS:
        tokenizer = _byte_level(fields, rule, context)
    else:
        raise ConfigError(
            f"{gguf.name} splits words by the rule {rule!r}, which is not known here. Put the tokenizer.json of the original model beside "
            "the .gguf file."
        )
    if tokenizer.chat_template is None and "tokenizer.chat_template" in fields:
        tokenizer.chat_template = fields["tokenizer.chat_template"]
    return tokenizer


def _byte_level(fields: dict[str, Any], rule: str, context: int | None) -> Any:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges") or []]
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges, ignore_merges=rule in KEEP_WORDS))
    split = SPLITS[rule]
    words: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule in DIGITS_APART else []
    words += [] if split is None else [pre_tokenizers.Split(Regex(split), behavior="isolated")]
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)])
    bpe.decoder = decoders.ByteLevel()
    if rule in COMPOSED:
        bpe.normalizer = normalizers.NFC()
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [(token, type_ == CONTROL) for token, type_ in zip(tokens, types, strict=True) if type_ in (CONTROL, USER_DEFINED)]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, special in added if special])
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token, special in added if not special])
    ids: dict[str, Any] = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in NAMES.items()}
    special = {name: tokens[id] for name, id in ids.items() if id is not None and id < len(tokens)}
    first = special.get("bos_token")
    if fields.get("tokenizer.ggml.add_bos_token") and first is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{first}:0 $A:0", pair=f"{first}:0 $A:0 {first}:1 $B:1", special_tokens=[(first, int(ids["bos_token"]))]
        )
    length = {} if context is None else {"model_max_length": context}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **length, **special)


def _sentencepiece(gguf: Path, fields: dict[str, Any]) -> Any:
    """The tokenizer as transformers reads it, with the ids of the file."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:
        kind = fields.get("tokenizer.ggml.model")
        raise ConfigError(
            f"The tokenizer of {gguf.name} is of the kind {kind!r}, and transformers cannot read it: {error}. Put the tokenizer.json of "
            "the original model beside the .gguf file."
        ) from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    wrong = next((token for id, token in enumerate(fields["tokenizer.ggml.tokens"]) if vocabulary.get(token, id) != id), None)
    if wrong is not None:
        raise ConfigError(f"transformers gives the token {wrong!r} of {gguf.name} another id. Put tokenizer.json beside the .gguf file.")
    return tokenizer
