"""The settings of a teacher: a model, and the engine that serves it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from agentlightning.config.models import model_path
from agentlightning.errors import ConfigError
from agentlightning.settings import BaseSettings, of_kind
from agentlightning.types import JSON


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(BaseSettings):
    """A model that the trained one learns from (`docs/teachers.md`). It scores sampled tokens (`teacher_coef`), and then needs the same
    tokenizer, or it answers the agent (`sft`, `demonstrated_steps`)."""

    table = "teacher"
    model: str
    """Any name of a model that `model` takes. With `engine = {name = "upstream"}`, the server's name for it."""
    engine: Annotated[dict[str, JSON], of_kind("engines")] = field(default_factory=dict[str, JSON])
    """The engine that serves the teacher, with its settings: `torch` (the default), or `upstream` for another server. A
    vLLM server scores tokens. Any OpenAI-compatible server answers, and only `upstream` does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        engine = {"name": "torch", **self.engine}
        if not isinstance(engine["name"], str):
            raise ConfigError(f"teacher.engine.name is {engine['name']!r:.80}. Use text.")
        object.__setattr__(self, "engine", engine)

    def under(self, base: Path) -> TeacherConfig:
        """Return the same settings, with the path of a model on this disk made absolute."""
        return replace(self, model=model_path(self.model, base))
