"""Ids to text while they come."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agentlightning.gateway.rendering.replies import Detokenizer


def decode(ids: Any) -> str:
    return bytes(ids).decode("utf-8", "replace")


@given(text=st.text(max_size=30), sizes=st.lists(st.integers(1, 5), min_size=1))
def test_valid_text_comes_out_whole_and_never_half_a_character(text: str, sizes: list[int]) -> None:
    data, detokenizer, out, at, turn = list(text.encode()), Detokenizer(decode), "", 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        out += detokenizer.feed(data[at : at + size])
        assert text.startswith(out)
        at, turn = at + size, turn + 1
    assert out + detokenizer.feed([], final=True) == text


@given(data=st.binary(max_size=40), size=st.integers(1, 7))
@example(data=b"\x80\x80\x80\xc2\x80", size=1)
def test_broken_bytes_come_out_too_and_hold_nothing_back_for_long(data: bytes, size: int) -> None:
    detokenizer, out = Detokenizer(decode), ""
    for at in range(0, len(data), size):
        out += detokenizer.feed(data[at : at + size])
        assert len(detokenizer._ids) - detokenizer._read < 4
    out += detokenizer.feed([], final=True)
    assert out.replace("\ufffd", "") == decode(data).replace("\ufffd", "")
