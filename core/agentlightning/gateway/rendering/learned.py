"""Whether a model has learned a token, read from its weights without loading them.

Vocabularies hold tokens that no training text had. All of their rows in the output embedding end up alike, because every step pushes them
in the same direction (Land and Bartolo 2024, arXiv 2405.05417, find such tokens in the same way). A chat template may use one of them:
`<tool_call>` of Qwen2.5-Coder-0.5B is an example. The model cannot tell it from padding and never writes it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentlightning.files import safetensors_header

OUTPUTS = ("lm_head.weight", "embed_out.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""Ends of the names of output embeddings, and of input embeddings that serve as outputs as well. The first match counts."""
COMPARED = 1024
"""Rows at the end of the vocabulary, where unused tokens are."""
ALIKE, DISTANCE = 8, 0.01
"""A token is unlearned if this many other rows are nearer to its row than this part of its length."""


def unlearned(folder: Path, ids: Collection[int]) -> set[int]:
    """Those of the ids that the model in a folder has not learned. Empty as well where its files do not say."""
    source = _output_embedding(folder) if folder.is_dir() else None
    if source is None:
        return set()
    rows, dtype = source
    last = _floats(rows[max(0, len(rows) - COMPARED) :], dtype)
    return {id for id in ids if 0 <= id < len(rows) and _is_unused(_floats(rows[id : id + 1], dtype)[0], last)}


def _is_unused(row: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    near = np.linalg.norm(others - row, axis=1) <= DISTANCE * np.linalg.norm(row)
    return int(near.sum()) > ALIKE  # its own row may be one of them


def _output_embedding(folder: Path) -> tuple[NDArray[np.uint8], str] | None:
    """((tokens, bytes of a row), its type) in the model's safetensors files. None: not there."""
    tensors = {name: (file, start, about) for file in sorted(folder.glob("*.safetensors")) for name, start, about in _tensors(file)}
    for end in OUTPUTS:
        for name, (file, start, about) in tensors.items():
            if name.endswith(end) and about["dtype"] in ("BF16", "F16", "F32") and len(about["shape"]) == 2:
                first, last = about["data_offsets"]
                rows = about["shape"][0]
                return np.memmap(file, np.uint8, "r", start + first, (rows, (last - first) // rows)), about["dtype"]
    return None


def _tensors(file: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """(name, where the data of the file starts, about it) of each tensor. A damaged file has none: who loads the model says so."""
    try:
        start, tensors = safetensors_header(file)
    except ValueError:
        return []
    return [(name, start, about) for name, about in tensors.items()]


def _floats(rows: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    data = np.ascontiguousarray(rows)
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32)
