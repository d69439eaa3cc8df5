"""Objects of a framework as JSON: whatever they are, reading them ends, raises nothing and says what was left out."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from agentlightning.capture.to_json import OBJECTS, plain


@dataclass
class Peer:
    name: str
    peers: list[Peer] = field(default_factory=list["Peer"])


def test_objects_that_refer_to_one_another_come_to_an_end() -> None:
    peers = [Peer(str(number)) for number in range(12)]  # 12 to the sixth ways through them, at twelve levels
    for peer in peers:
        peer.peers = [each for each in peers if each is not peer]
    began = time.monotonic()
    text = json.dumps(plain(peers[0]))
    assert time.monotonic() - began < 20
    assert len(text) < 10_000_000
    assert "left out, after 10000 lists and objects" in text
    assert "left out, deeper than 12 levels" in text


def test_a_long_list_of_numbers_is_kept_whole() -> None:
    numbers = [number / 3 for number in range(5 * OBJECTS)]
    assert plain({"embedding": numbers}) == {"embedding": numbers}
