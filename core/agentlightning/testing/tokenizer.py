"""A tiny tokenizer for tests: one token for each byte, and the three marks of ChatML. Encoding then decoding gives any text back."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2, as in SmolLM2; `<|im_end|>` ends a turn and pads."""
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(folder: str | PathLike[str], *, merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Make the tokenizer and save it in `folder`, where `AutoTokenizer.from_pretrained` finds it. Needs `transformers`.

    Ids: 0 to 2 the marks, then the 256 bytes in the order of their printed form, then one for each of `merges` (pairs of printable
    ASCII strings that become one token; for tests of text that has more than one tokenisation).
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*MARKS, *alphabet, *(left + right for left, right in merges)]
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges))
    backend: Any = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=MARKS[1],
        eos_token=MARKS[2],
        pad_token=MARKS[2],
        additional_special_tokens=[MARKS[0]],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(folder))
    return tokenizer
