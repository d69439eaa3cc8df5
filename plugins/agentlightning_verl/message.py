"""Messages between the trainer and verl's process: a length, fields as JSON, and arrays in numpy's format. No pickle.

Both sides import this module, so it needs only numpy.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH = Struct("<Q")
FACTS = "__facts__"


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    kind: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])


def send(connection: socket.socket, message: Message) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    facts = np.frombuffer(json.dumps({"kind": message.kind, **message.facts}).encode(), np.uint8)
    np.savez(buffer, **{FACTS: facts}, **dict(message.arrays))  # type: ignore[arg-type]
    data = buffer.getbuffer()
    connection.sendall(LENGTH.pack(len(data)))
    connection.sendall(data)


def receive(connection: socket.socket) -> Message | None:
    """Read one message. Return None if the other side closed."""
    head = _read(connection, LENGTH.size)
    if head is None:
        return None
    body = _read(connection, LENGTH.unpack(head)[0])
    if body is None:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays.pop(FACTS).tobytes())
    return Message(facts.pop("kind"), facts, arrays)


def _read(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = connection.recv(min(count - len(data), 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)
