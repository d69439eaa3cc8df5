"""Text to token ids. Marks of the template become their own tokens; the same characters from users and tools stay plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

# Private characters around a number stand for a guarded text, and for a token with another name. Fonts use this plane, texts do not.
GUARD = "\U000f8000{}\U000f8001"
RENAMED = "\U000f8002{}\U000f8003"
_GUARDS = re.compile("\U000f8000([0-9]+)\U000f8001")


class Guarded:
    """Texts of messages with the characters of special tokens replaced, and what they were."""

    def __init__(self, marks: re.Pattern[str] | None) -> None:
        self._marks = marks
        self.originals: list[str] = []

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message. Those of the assistant keep their marks: the model wrote them, and templates look for them."""
        if message["role"] == "assistant":
            return dict(message)
        return {key: value if key in ("role", "tool_call_id") else self.value(value) for key, value in message.items()}

    def value(self, value: Any) -> Any:
        """Any JSON value, such as a tool."""
        if isinstance(value, str):
            return value if self._marks is None else self._marks.sub(self._keep, value)
        if isinstance(value, Mapping):
            fields = cast("Mapping[str, Any]", value)
            return {self.value(key): self.value(item) for key, item in fields.items()}
        if isinstance(value, list):
            return [self.value(item) for item in cast("list[Any]", value)]
        return value

    def restored(self, text: str) -> str:
        """A text with the original characters."""
        return _GUARDS.sub(lambda match: self.originals[int(match[1])], text)

    def _keep(self, match: re.Match[str]) -> str:
        self.originals.append(match[0])
        return GUARD.format(len(self.originals) - 1)


class Tokens:
    """A tokenizer with guarded encoding."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def added(self) -> dict[int, Any]:
        """The tokens beside the vocabulary, by id."""
        return dict(self.tokenizer.added_tokens_decoder)

    @cached_property
    def by_text(self) -> dict[str, int]:
        """The ids of the tokens beside the vocabulary."""
        return {str(token.content): id for id, token in self.added.items()}

    @cached_property
    def marks(self) -> re.Pattern[str] | None:
        """The texts that only the template may write: special tokens, and tags."""
        texts = [token.content for token in self.added.values() if token.special or re.fullmatch(r"[<\[].+[>\]]", token.content)]
        texts = sorted((text for text in texts if text.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def guard(self) -> Guarded:
        """Guards for the messages of one request."""
        return Guarded(self.marks)

    def encode(self, text: str, guarded: Guarded | None = None) -> list[int]:
        """The ids of a rendered text."""
        if guarded is None or not guarded.originals or not _GUARDS.search(text):
            return self._encode(text)
        if self._renaming is None:
            return self._encode_parts(text, guarded)
        pattern, renamed, ids = self._renaming
        text = pattern.sub(lambda match: RENAMED.format(self.by_text[match[0]]), text)
        ids_of_copy: list[int] = renamed.encode(guarded.restored(text), add_special_tokens=False).ids
        return [ids.get(id, id) for id in ids_of_copy]

    def _encode(self, text: str) -> list[int]:
        if self._backend is not None:  # without checks that cost more than the encoding of one message
            [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=False)  # without offsets, which cost as much
            return encoding.ids
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer without transformers around it, where it has one. It never cuts or pads a text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        return backend

    def encode_after(self, last: int | None, text: str, guarded: Guarded | None = None) -> list[int]:
        """The ids of a text that follows the token `last`. SentencePiece tokenizers put a space before a text that stands alone, and some
        marks swallow the whitespace after them."""
        mark = self.added.get(last) if last is not None else None
        if mark is None and not self._prefixes:
            return self.encode(text, guarded)
        before = str(mark.content) if mark is not None else "\0"
        lead, ids = self.encode(before), self.encode(before + text, guarded)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self.encode(text, guarded)

    @cached_property
    def _prefixes(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        first = self.tokenizer.convert_ids_to_tokens(self.encode("a")[:1])
        return bool(first) and str(first[0]).startswith("\u2581")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with its special tokens."""
        if self._backend is not None:  # without checks that cost more than the decoding of one chunk
            return self._backend.decode(list(ids), skip_special_tokens=False)
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @cached_property
    def _renaming(self) -> tuple[re.Pattern[str], Any, dict[int, int]] | None:
        """A copy of the tokenizer whose added tokens have names that no text has: (the true names, the copy, its ids to ours)."""
        if self._backend is None:
            return None
        from tokenizers import Tokenizer

        content = json.loads(self._backend.to_str())
        content.update(post_processor=None, truncation=None, padding=None)
        for token in content["added_tokens"]:
            token["content"] = RENAMED.format(token["id"])
        copy: Any = Tokenizer.from_str(json.dumps(content))
        ids = {copy.token_to_id(RENAMED.format(id)): id for id in self.added}
        texts = sorted(self.by_text, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))), copy, ids

    def _encode_parts(self, text: str, guarded: Guarded) -> list[int]:
        """Without a copy: a guarded text is encoded in two halves, so that no token spans it."""
        ids: list[int] = []
        rest = 0
        for match in _GUARDS.finditer(text):
            original = guarded.originals[int(match[1])]
            ids += self.tokenizer.encode(text[rest : match.start()] + original[:1], add_special_tokens=False)
            ids += self.tokenizer.encode(original[1:], add_special_tokens=False)
            rest = match.end()
        return ids + self.tokenizer.encode(text[rest:], add_special_tokens=False)
