"""The teacher of a run: an engine that scores the student's tokens, or that answers the agent in its place. A teacher that scores and has
another tokenizer is refused by name, because its log-probabilities would be of other texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlightning.config.models import FetchProgress, find_model
from agentlightning.config.parts import Part
from agentlightning.config.teacher import TeacherConfig
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, EngineError, EngineUnavailable, UnsupportedSetting
from agentlightning.gateway.rendering.demonstration import WithSettings
from agentlightning.gateway.rendering.load import load_tokenizer
from agentlightning.rl.marks import Needs
from agentlightning.types import JSON, Doubles

PROBE = "Größe 12345.67 naïve 你好,世界 🙂\n\n\tdef f(x):  return [x**2, {'k': \"v\"}] # end\r\n    It's 3:00 a.m.; don't—stop…  "
"""Text that tokenizers split in different ways."""
PIECES = 1000
"""Tokens of the vocabulary that a server is asked about."""


@dataclass(frozen=True, slots=True)
class TeacherPlan:
    """A teacher, checked and ready to open."""

    files: ModelFiles
    """Without a path, the model lies on somebody else's server."""
    engine: Any
    """The class."""
    settings: Any
    scores: bool = True
    """Whether it scores tokens, for which its tokenizer must be the student's."""


def plan_teacher(teacher: TeacherConfig | None, needs: Needs, temperature: float, progress: FetchProgress) -> TeacherPlan | None:
    """Check the `[teacher]` of a config and find its model (blocking). `temperature`: of the student. Raises `ConfigError`."""
    if (teacher is not None) != (needs.teacher or needs.answers):
        setting = "algorithm.teacher_coef" if needs.teacher else "algorithm.demonstrated_steps"
        problem = f"{setting} is set, but there is no [teacher]" if teacher is None else "[teacher] is set, but nothing asks it"
        advice = "Add [teacher] with its model" if teacher is None else "Set algorithm = 'distillation', or algorithm.teacher_coef"
        raise ConfigError(f"{problem}. {advice}, or remove it.")
    if teacher is None:
        return None
    part = Part.parse("engines", teacher.engine, "teacher.engine")
    engine, settings = part.target, part.make()
    if needs.teacher and not engine.scores:
        raise UnsupportedSetting(f"teacher.engine {part.name!r} cannot score given tokens. Use engine 'torch' or 'upstream'.")
    if needs.answers and not engine.answers:
        raise UnsupportedSetting(
            f"teacher.engine {part.name!r} cannot answer messages. Run `agl serve {teacher.model}`, and set teacher.engine = "
            '{name = "upstream", url = "http://127.0.0.1:8000/v1"}.'
        )
    engine.check_settings(settings)
    if not engine.remote:
        return TeacherPlan(find_model(teacher.model, progress=progress), engine, settings)
    if needs.teacher and temperature != 1.0:
        raise UnsupportedSetting(
            f"sampling.temperature is {temperature:g}, and the server of the teacher reports log-probabilities at "
            "temperature 1. Set sampling.temperature = 1.0, or serve the teacher with engine 'torch'."
        )
    return TeacherPlan(ModelFiles(teacher.model, ""), engine, settings, scores=needs.teacher)


def check_teacher(plan: TeacherPlan | None, student: ModelFiles) -> None:
    """Raise `ConfigError` if a teacher on this disk has another tokenizer than the student (blocking)."""
    if plan is None or not plan.files.path or not plan.scores:
        return
    (ours, digest), (theirs, other_digest) = (load_tokenizer(files.name, files.path) for files in (student, plan.files))
    if digest == other_digest:
        return
    difference = _difference(ours.get_vocab(), theirs.get_vocab(), "token") or _difference(
        _special(ours), _special(theirs), "special token"
    )
    if difference is None and _ids(ours, PROBE) != _ids(theirs, PROBE):
        difference = f"they split the text {PROBE[:24]!r}... differently"
    if difference is not None:
        raise _refusal(plan.files.name, student.name, difference)


@dataclass(frozen=True, slots=True)
class Teacher:
    """Scores sampled tokens under the weights of another model, or answers in the student's place."""

    name: str
    engine: Engine
    outage: asyncio.Future[None]
    """Has the error of a teacher whose server stayed away when it should answer."""

    async def logprobs(self, batch: Batch) -> Doubles:
        """(tokens,) the teacher's log-probability of each sampled token; NaN on context. Raises `EngineError` if one is not a number."""
        logprobs = await self.engine.score(batch)
        wrong = int((~np.isfinite(logprobs[batch.trained])).sum())
        if wrong:
            raise EngineError(
                f"Teacher {self.name!r} gave no finite log-probability to {wrong} of {batch.trained_tokens} tokens. Check its weights and "
                "number type."
            )
        return logprobs

    def demonstrate(self, loop: asyncio.AbstractEventLoop) -> WithSettings:
        """Return what answers a model call, from any thread but that of `loop`, where the teacher was opened."""

        async def ask(messages: list[dict[str, Any]], tools: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
            try:
                return await self.engine.answer(messages, tools, settings)
            except EngineUnavailable as error:
                if not self.outage.done():
                    self.outage.set_exception(error)
                raise

        def answer(task: JSON, messages: list[dict[str, Any]], tools: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
            stops: tuple[str, ...] = settings.pop("stop", ())
            return _stopped(asyncio.run_coroutine_threadsafe(ask(messages, tools, settings), loop).result(), stops)

        return WithSettings(answer)


def _stopped(message: dict[str, Any], stops: tuple[str, ...]) -> dict[str, Any]:
    """End a message before the first of these texts. Servers of reasoning models refuse `stop`, so the teacher never gets it."""
    content = message.get("content") or ""
    places = [content.index(stop) for stop in stops if stop in content]
    return {**message, "content": content[: min(places)], "tool_calls": None} if places else message


@asynccontextmanager
async def open_teacher(plan: TeacherPlan | None, student: ModelFiles) -> AsyncGenerator[Teacher | None]:
    """Open the teacher of a run; None without one. Raises `ConfigError` if its server has another tokenizer than the student."""
    if plan is None:
        yield None
        return
    engine: Engine = await plan.engine.create(plan.files, plan.settings, {})
    try:
        if plan.scores and not plan.files.path:
            await _check_server(engine, plan.files.name, student)
        yield Teacher(plan.files.name, engine, asyncio.get_running_loop().create_future())
    finally:
        await engine.close()


async def _check_server(engine: Engine, teacher: str, student: ModelFiles) -> None:
    """Compare the tokenizer of a server: a probe, every special token, and tokens from the whole vocabulary."""
    tokenizer, _ = await asyncio.to_thread(load_tokenizer, student.name, student.path)
    ids = np.linspace(0, len(tokenizer.get_vocab()) - 1, PIECES, dtype=int)
    texts = {
        f"they split the text {PROBE[:24]!r}... differently": PROBE,
        "their special tokens differ": "".join(_special(tokenizer)),
        "their vocabularies differ": " ".join(tokenizer.decode([id]) for id in dict.fromkeys(ids.tolist())),
    }
    for difference, text in texts.items():
        if await engine.tokenize(text) != _ids(tokenizer, text):
            raise _refusal(teacher, student.name, difference)


def _special(tokenizer: Any) -> dict[str, int]:
    """The tokens beside the vocabulary, with their ids."""
    return {str(token.content): id for id, token in tokenizer.added_tokens_decoder.items()}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _difference(ours: Mapping[str, int], theirs: Mapping[str, int], kind: str) -> str | None:
    """Return how two vocabularies differ; None: they are equal."""
    for token in sorted({*ours, *theirs}, key=lambda token: ours.get(token, theirs.get(token, 0))):
        one, other = ours.get(token), theirs.get(token)
        if one != other:
            return f"{kind} {token!r} is {_number(one)} in the student and {_number(other)} in the teacher"
    return None


def _number(id: int | None) -> str:
    return "missing" if id is None else f"number {id}"


def _refusal(teacher: str, student: str, difference: str) -> ConfigError:
    return ConfigError(
        f"Teacher {teacher!r} has another tokenizer than {student!r}: {difference}. Use a teacher of the same family, or train on its "
        "answers as demonstrations (docs/teachers.md)."
    )
