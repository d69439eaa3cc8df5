"""Check every causal language model of transformers in the torch engine and trainer, at lengths on both sides of each boundary.

    python benchmarks/models/architectures.py                      # all, some minutes; a second run goes on where the first stopped
    python benchmarks/models/architectures.py gemma3_text phi3     # some, anew
    python benchmarks/models/architectures.py --markdown docs/models.md  # also write the table

Each architecture is built tiny with random weights in float32. Its windows and original lengths are 24 tokens, and the sequences have 5 to
60. The reference is one plain pass of transformers over prompt and reply. A row is exact if the gradient differs by less than 1e-5 of its
norm, and the engine's log-probabilities by less than 3e-5. Refusals count as right, because they have a reason. The script exits with
status 1 if an accepted model is not exact.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from tiny import VARIANTS, VOCABULARY, causal_types, tiny_model

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import LightningError
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Sampling, ints
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.settings import TorchTrainerSettings
from agentlightning_torch.trainer import TorchTrainer

GRADIENT, LOGPROBS = 1e-5, 3e-5
"""Bounds of the differences."""
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
"""Markers of the table in docs/models.md."""
PACK = 60
"""Tokens of the longest sequence, and of a pack."""


@dataclass(frozen=True)
class Outcome:
    """What the torch engine and trainer made of one architecture."""

    name: str
    trainer: str
    """`forest`, the kind of rows, `refused`, or `not built`."""
    engine: str = "-"
    """`served` or `refused`."""
    gradient: float | None = None
    """Difference of the gradient, as a part of its norm."""
    trained: float | None = None
    """Largest difference of the trainer's log-probabilities, nats."""
    sampled: float | None = None
    """Largest difference of the engine's log-probabilities, nats."""
    reason: str = ""
    """Why there is no forest, or no trainer."""
    engine_reason: str = ""

    @property
    def wrong(self) -> bool:
        """Whether an accepted model is not exact."""
        over = [(self.gradient, GRADIENT), (self.trained, LOGPROBS), (self.sampled, LOGPROBS)]
        return any(value is not None and not value <= bound for value, bound in over)


def check(name: str) -> Outcome:
    """Build an architecture, train and serve it, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tiny_model(name).save_pretrained(folder)
        except Exception as error:
            return Outcome(name, "not built", reason=_line(error))
        outcome = asyncio.run(_check(name, ModelFiles(name, folder)))
        return replace(outcome, **{field: getattr(outcome, field).replace(folder, "FOLDER") for field in ("reason", "engine_reason")})


async def _check(name: str, files: ModelFiles) -> Outcome:
    share: Share = {}
    fields: dict[str, Any] = {"trainer": "refused"}
    try:
        trainer = await TorchTrainer.create(files, TorchTrainerSettings(tokens_per_pack=PACK, dtype="float32", device="cpu"), share)
    except LightningError as error:
        fields["reason"] = _line(error)
    else:
        fields["trainer"], fields["reason"] = trainer.scoring.way, trainer.scoring.reason or ""
        fields["gradient"], fields["trained"] = _trained(trainer)
        await trainer.close()
    try:
        engine = await TorchEngine.create(files, TorchEngineSettings(dtype="float32", device="cpu"), share)
    except LightningError as error:
        fields["engine"], fields["engine_reason"] = "refused", _line(error)
    else:
        fields["engine"], fields["sampled"] = "served", await _sampled(engine)
        await engine.close()
    return Outcome(name, **fields)


def _trained(trainer: TorchTrainer) -> tuple[float, float]:
    """The differences of gradient and log-probabilities between the trainer's passes and plain ones."""
    model, batch = trainer.weights.model, _batch(trainer.capabilities.max_sequence_tokens or PACK)
    factors = torch.from_numpy(np.random.default_rng(1).standard_normal(len(batch))).float()
    ours, theirs = np.zeros(len(batch)), np.zeros(len(batch))
    model.zero_grad()
    for scores, _ in trainer.scoring.scores(model, batch, PACK):
        ours[scores.index] = scores.logprob.detach().numpy()
        (factors[scores.index] * scores.logprob).sum().backward()
    gradient = _gradient(model)
    for index, ids in _transitions(batch):
        logprob = _plain(model, ids, len(index))
        theirs[index] = logprob.detach().numpy()
        (factors[index] * logprob).sum().backward()
    reference = _gradient(model)
    return float((gradient - reference).norm() / reference.norm()), float(np.abs(ours - theirs).max())


def _gradient(model: Any) -> torch.Tensor:
    """Take the gradient of all parameters as one vector."""
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return flat


def _plain(model: Any, ids: list[int], count: int) -> torch.Tensor:
    """(count,) log-probabilities of the last tokens, from one plain pass."""
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens, use_cache=False).logits[0, -count - 1 : -1]
    return logits.log_softmax(-1).gather(1, tokens[0, -count:, None])[:, 0]


def _transitions(batch: Batch) -> Iterator[tuple[np.ndarray, list[int]]]:
    """The tokens of each transition, as their index in the batch and with their prompt."""
    for number in range(len(batch.completion_ids)):
        index = np.flatnonzero(batch.transition == number)
        path, token = [], int(index[-1])
        while token >= 0:
            path.append(int(batch.token_ids[token]))
            token = int(batch.parent[token])
        yield index, path[::-1]


def _batch(longest: int) -> Batch:
    """Conversations below, across, and beyond the boundary, which share prompts and take turns, up to some length."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return random.integers(1, VOCABULARY - 2, count).tolist()

    def grow(turns: list[tuple[list[int], int]]) -> list[tuple[list[int], list[int]]]:
        calls: list[tuple[list[int], list[int]]] = []
        history: list[int] = []
        for words, count in turns:
            calls.append(([*history, *words], tokens(count)))
            history = [*calls[-1][0], *calls[-1][1]]
        return calls

    shared = tokens(10)
    conversations = [
        grow([(shared, 6), (tokens(2), 5)]),  # below the boundary
        grow([(shared, 7), (tokens(4), 9), (tokens(3), 8)]),  # grows across it between turns, and within one
        grow([([*shared, *tokens(9)], 12)]),  # crosses it within a reply
        grow([(tokens(30), 6), (tokens(12), 12)]),  # beyond it
        grow([(tokens(4), 3)]),  # short, with a root of its own
    ]
    fitting = [[(prompt, reply) for prompt, reply in calls if len(prompt) + len(reply) <= longest] for calls in conversations]
    trajectories = [
        trajectory(number, *(transition(turn, *call, id=f"{number}.{turn}") for turn, call in enumerate(calls)))
        for number, calls in enumerate(fitting)
        if calls
    ]
    return make_batch(trajectories, [np.ones(len(trajectory.transitions)) for trajectory in trajectories])


async def _sampled(engine: TorchEngine) -> float:
    """The largest difference between the engine's log-probabilities and those of plain passes, over replies together and a next turn."""
    random = np.random.default_rng(2)
    sizes = [size for size in (5, 18, 23, 24, 40) if size < engine.info.context_length]
    prompts = [random.integers(1, VOCABULARY - 2, size).tolist() for size in sizes]
    replies = await asyncio.gather(*(_ask(engine, prompt, seed) for seed, prompt in enumerate(prompts)))
    turns = [[*prompt, *ids, 3, 5] for prompt, (ids, _) in zip(prompts, replies, strict=True)]
    turns = [turn for turn in turns if len(turn) < engine.info.context_length]
    prompts, replies = prompts + turns, [*replies, *[await _ask(engine, turn, 9) for turn in turns]]
    model = engine._weights.model
    with torch.no_grad():
        differences = [
            np.abs(logprobs - _plain(model, [*prompt, *ids], len(ids)).numpy()).max()
            for prompt, (ids, logprobs) in zip(prompts, replies, strict=True)
        ]
    return float(max(differences))


async def _ask(engine: TorchEngine, prompt: list[int], seed: int) -> tuple[list[int], np.ndarray]:
    chunks = [chunk async for chunk in engine.generate(ints(prompt), Sampling(max_tokens=16, seed=seed))]
    return [int(token) for chunk in chunks for token in chunk.ids], np.concatenate([chunk.logprobs for chunk in chunks])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def markdown(outcomes: list[Outcome]) -> str:
    """The counts and the table of docs/models.md."""
    counts = Counter(f"{outcome.trainer}, {outcome.engine}" for outcome in outcomes)
    lines = [
        "| architecture | trainer | gradient | log-probs | engine | log-probs | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
        reasons = dict.fromkeys(_short(reason) for reason in (outcome.reason, outcome.engine_reason) if reason)
        cells = [
            outcome.name,
            outcome.trainer,
            _number(outcome.gradient),
            _number(outcome.trained),
            outcome.engine,
            _number(outcome.sampled),
        ]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(reasons)} |")
    summary = [f"- {ways}: {count}" for ways, count in counts.most_common()]
    return "\n".join(
        [f"transformers {transformers.__version__}, torch {torch.__version__}. Trainer, engine: architectures.", "", *summary, "", *lines]
    )


def _short(reason: str) -> str:
    """A reason without the model's name, and without the way out that all have."""
    reason = re.sub(r"^(The torch (engine|trainer) cannot (serve|train)|Model) '[^']*' (\([^)]*\))?:? ?", "", reason)
    return re.sub(r"\. Use another model, or (engine|trainer) '\w+'\.?$", "", reason).replace("|", "/")


def write_markdown(path: Path, outcomes: list[Outcome]) -> None:
    """Write the table into a file, between its markers."""
    text = path.read_text("utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{markdown(outcomes)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    """Check the architectures, and return the status of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; absent: all")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/architectures.jsonl"),
        help="where outcomes are kept until all are there (default %(default)s)",
    )
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its markers")
    arguments = parser.parse_args()
    quiet()
    path: Path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {line["name"]: Outcome(**line) for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    names = arguments.names or [name for name in [*causal_types(), *VARIANTS] if name not in kept]
    console = Console()
    for name in track(names, "checking", console=console, disable=not console.is_terminal):
        kept[name] = outcome = check(name)
        console.print(_report(outcome), highlight=False, markup=False, soft_wrap=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
    outcomes = [kept[name] for name in arguments.names or kept]
    if arguments.markdown:
        write_markdown(arguments.markdown, outcomes)
    path.unlink(missing_ok=True)  # the next run checks the code of then
    wrong = [outcome.name for outcome in outcomes if outcome.wrong]
    console.print(dict(Counter(f"{outcome.trainer}, {outcome.engine}" for outcome in outcomes)), f"not exact: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def quiet() -> None:
    """Silence what transformers says about random weights."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("agentlightning_torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def _report(outcome: Outcome) -> str:
    numbers = " ".join(f"{_number(value):>6}" for value in (outcome.gradient, outcome.trained, outcome.sampled))
    mark = "WRONG" if outcome.wrong else "     "
    reasons = " / ".join(reason for reason in (outcome.reason, outcome.engine_reason) if reason)
    return f"{mark} {outcome.name:26} {outcome.trainer:22} {outcome.engine:8} {numbers}  {reasons[:240]}"


if __name__ == "__main__":
    sys.exit(main())
