"""What a judge has said, in a file of JSON lines, so that a resumed run or another evaluation asks nothing twice.

A line has the hash of a request and the judgement. It holds no key, no task and no answer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.files import disk_errors
from agentlightning.types import JSON

FILE = "judge.jsonl"


class JudgeCache:
    """Judgements by the hash of their request."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one. A line that a crash cut off is ignored. Raises `RunError` if the disk refuses."""
        self._path = path
        self._judgements: dict[str, dict[str, JSON]] = {}
        with disk_errors("read", path):
            data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines():
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
                self._judgements[str(row.pop("request"))] = row
            except (msgspec.DecodeError, msgspec.ValidationError, KeyError):
                continue
        self._start = b"\n" if data and not data.endswith(b"\n") else b""

    def get(self, request: str) -> dict[str, JSON] | None:
        """Return the judgement of a request; None: it was not asked so far."""
        return self._judgements.get(request)

    def keep(self, request: str, judgement: dict[str, JSON]) -> None:
        """Add a judgement, and write it."""
        self._judgements[request] = judgement
        with disk_errors("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(self._start + msgspec.json.encode({"request": request, **judgement}) + b"\n")
        self._start = b""


def request_hash(base_url: str, model: str, messages: list[dict[str, str]]) -> str:
    """Return the hash of everything that a judgement depends on. The messages hold rubric, scale, task and answer."""
    return hashlib.sha256(msgspec.json.encode([base_url.rstrip("/"), model, messages])).hexdigest()
