"""Measures time and memory of one train step, as a forest, as root-to-leaf rows, and as one row per transition.

    python benchmarks/performance/forest.py                                       # 8 rollouts x 8 turns, a tiny model: a minute
    python benchmarks/performance/forest.py --model smollm2-135m --train top:4 --repeat 1    # a real model: half an hour on a CPU
    python benchmarks/performance/forest.py --rollouts 2 --turns 2 --prompt 64    # smaller; the bounds hold for the default size

The rollouts share their prompt. Each turn adds 100 tokens: 50 sampled and 50 observed. A step is the trainer's own: PPO's loss on packs of
at most --tokens-per-pack tokens, the backward pass, and AdamW. The modes take turns, with steps so small that all see the same weights.
`gradient differs by` is the largest relative difference over all parameters, compared with one row per transition.

Memory is measured in a separate process per mode: the peak increase of a step over the process's memory after a small step. On a CPU it is
resident memory from the kernel (Linux), with separate pages for each array. On a GPU it is torch's allocations.

On a GPU the table also shows tokens/s and the share of the card's bf16 peak. They count 6 operations per weight and computed token
(for the head, per predicted token), and 12 x layers x width per pair of tokens that see each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bounds import Report, bar, finish
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from agentlightning.config.models import find_model
from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import Pack, cut_packs, leaf_rows, transition_rows
from agentlightning.rl.loss import PPOClip
from agentlightning.types import Task, Trajectory, Transition
from agentlightning_torch.forward import Scores, group_rows, score_forest, score_rows
from agentlightning_torch.optim import Optimizer, trained_parameters
from agentlightning_torch.update import Update
from agentlightning_torch.weights import no_bars

FOREST, ROWS, TRANSITIONS = "forest", "root-to-leaf rows", "one row per transition"
MODES = (FOREST, ROWS, TRANSITIONS)
FASTER = {ROWS: 1.0, TRANSITIONS: 6.0}
"""Minimum ratio of each mode's time to the forest's."""
PEAKS = {"H100 SXM": 989e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations per second, by a part of the card's name."""
LR = 1e-12


def rollouts(
    count: int,
    turns: int,
    prompt: int,
    reply: int,
    observation: int,
    vocabulary: int,
    groups: int = 1,
    text: NDArray[np.int64] | None = None,
) -> Batch:
    """Return groups of `count` rollouts with advantages that sum to zero. Their tokens are random, or pieces of `text`."""
    rng = np.random.default_rng(0)

    def tokens(size: int) -> NDArray[np.int64]:
        if text is None:
            return rng.integers(0, vocabulary, size)
        start = rng.integers(0, len(text) - size + 1)
        return text[start : start + size]

    trajectories: list[Trajectory] = []
    for group in range(groups):
        shared = tokens(prompt)
        for index in range(count):
            history, transitions = shared, list[Transition]()
            for turn in range(turns):
                response = tokens(reply)
                transitions.append(
                    Transition(
                        completion_id=f"{group}.{index}.{turn}",
                        call_id="",
                        prompt_ids=history.astype(np.int32),
                        response_ids=response.astype(np.int32),
                        logprobs=np.full(reply, -5, np.float32),
                        versions=np.zeros(reply, np.int32),
                        temperature=1.0,
                        agent=None,
                        index=turn,
                        turn=turn,
                        continues=turn - 1 if turn else None,
                    )
                )
                history = np.concatenate([history, response, tokens(observation)])
            name = f"{group}.{index}"
            trajectories.append(
                Trajectory(
                    task=Task(f"t{group}", None),
                    rollout_id=name,
                    attempt_id=name,
                    group=f"g{group}",
                    index=index,
                    mode="train",
                    status="succeeded",
                    reward=1.0,
                    transitions=tuple(transitions),
                )
            )
    return make_batch(trajectories, [np.full(turns, 1.0 if k % 2 else -1.0) for k in range(len(trajectories))])


@dataclass
class Bench:
    """A model that takes steps."""

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    optimizer: Optimizer
    device: torch.device

    @classmethod
    def load(cls, options: argparse.Namespace) -> Bench:
        torch.set_num_threads(options.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as folder, no_bars():
            if options.model == "tiny":
                from agentlightning_torch.testing import tiny_model

                path = tiny_model(folder, layers=6, context=8192).path
            else:
                path = find_model(options.model).path
            dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        parameters = trained_parameters(model, options.train)
        return cls(model, parameters, Optimizer(parameters, lr=LR, clip_norm=1.0), device)

    def batch(self, options: argparse.Namespace) -> Batch:
        vocabulary = self.model.config.get_text_config().vocab_size
        return rollouts(options.rollouts, options.turns, options.prompt, options.reply, options.observation, vocabulary)

    def gradient(self, batch: Batch, work: list[list[Pack]], forest: bool) -> None:
        """Take a step as the trainer does."""

        def score(_: Sequence[int] | None, entropy: bool) -> Iterator[tuple[Scores, int]]:
            for packs in work:
                if forest:
                    yield score_forest(self.model, batch, packs[0], entropy=entropy), len(packs[0])
                else:
                    yield score_rows(self.model, batch, packs, entropy=entropy), sum(map(len, packs))

        update = Update(batch, PPOClip(), score, nullcontext)
        update.prepare()
        update.gradient(0)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def operations(self, batch: Batch, work: list[list[Pack]]) -> float:
        """Operations of a step that trains every layer."""
        config, head = self.model.config.get_text_config(), self.model.get_output_embeddings().weight
        embedding = self.model.get_input_embeddings().weight
        body = sum(p.numel() for p in self.model.parameters()) - embedding.numel() - (head.numel() if head is not embedding else 0)
        packs = [pack for group in work for pack in group]
        pairs = sum(int((pack.position.astype(np.int64) + 1).sum()) for pack in packs)
        width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        linear = 6 * (body * sum(map(len, packs)) + head.numel() * batch.trained_tokens)
        return linear + 12 * config.num_hidden_layers * width * pairs


def work_of(mode: str, batch: Batch, tokens_per_pack: int) -> list[list[Pack]]:
    """Return what the model computes at once."""
    if mode == FOREST:
        return [[pack] for pack in cut_packs(batch, tokens_per_pack)]
    return group_rows(leaf_rows(batch) if mode == ROWS else transition_rows(batch), tokens_per_pack)


def peak(options: argparse.Namespace, mode: str) -> int:
    """Return the bytes that a step adds at its peak, measured in this process."""
    bench = Bench.load(options)
    batch = bench.batch(options)
    small = rollouts(1, 1, 16, 16, 0, bench.model.config.get_text_config().vocab_size)
    for batch_of_size in (small, batch):
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before = _kilobytes("VmRSS")
        bench.gradient(batch_of_size, work_of(mode, batch_of_size, options.tokens_per_pack), mode == FOREST)
        bench.optimizer.step(LR)
    return torch.cuda.max_memory_allocated() - before if bench.device.type == "cuda" else 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])


def memory(options: argparse.Namespace, mode: str) -> int | None:
    """Return the same, measured in a separate process, or None if that is impossible."""
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        return None
    # Give each array its own pages, so that heap fragmentation does not count.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    # The processes fork from one that has imported torch and done nothing else.
    with multiprocessing.get_context("forkserver").Pool(1) as process:
        return process.apply(peak, (options, mode))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a name that `agl models` knows, a folder, or `tiny`")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens that the rollouts share")
    parser.add_argument("--reply", type=int, default=50, help="tokens sampled per turn")
    parser.add_argument("--observation", type=int, default=50, help="tokens added between turns")
    parser.add_argument("--tokens-per-pack", type=int, default=4096, help="maximum tokens per pack")
    parser.add_argument("--train", default="full", help="full or top:N")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: bfloat16 on a GPU, float32 on a CPU")
    options = parser.parse_args()

    with bar() as progress:
        task = progress.add_task("memory", total=len(MODES) * (options.repeat + 1))

        def tell(text: str) -> None:
            progress.update(task, description=text)
            progress.advance(task)

        peaks: dict[str, int | None] = {}
        for mode in MODES:
            tell(f"memory of {mode}")
            peaks[mode] = memory(options, mode)
        bench = Bench.load(options)
        batch = bench.batch(options)
        work = {mode: work_of(mode, batch, options.tokens_per_pack) for mode in MODES}
        small = rollouts(1, 1, 16, 16, 0, bench.model.config.get_text_config().vocab_size)
        for mode in MODES:  # warm up, so that no measured step is the first
            bench.gradient(small, work_of(mode, small, options.tokens_per_pack), mode == FOREST)
            bench.optimizer.zero()
        steps = take_steps(bench, batch, work, options.repeat, tell)
    finish(report(options, bench, batch, work, steps, peaks))


@dataclass
class Steps:
    """Measurements of each mode."""

    seconds: dict[str, list[float]]
    gradients: dict[str, dict[str, torch.Tensor]]
    """Measurements of the first step."""


def take_steps(bench: Bench, batch: Batch, work: dict[str, list[list[Pack]]], repeat: int, tell: Callable[[str], None]) -> Steps:
    """Take steps of all modes in turn."""
    steps = Steps({mode: [] for mode in MODES}, {})
    for turn in range(repeat):
        for mode in MODES:
            tell(mode)
            bench.wait()
            started = time.perf_counter()
            bench.gradient(batch, work[mode], mode == FOREST)
            bench.wait()
            took = time.perf_counter() - started
            if not turn:
                steps.gradients[mode] = {n: m.grad.detach().clone() for n, m in bench.optimizer.masters.items() if m.grad is not None}
            started = time.perf_counter()
            bench.optimizer.step(LR)
            bench.wait()
            steps.seconds[mode].append(took + time.perf_counter() - started)
    return steps


def report(
    options: argparse.Namespace,
    bench: Bench,
    batch: Batch,
    work: dict[str, list[list[Pack]]],
    steps: Steps,
    peaks: dict[str, int | None],
) -> list[str]:
    """Print the table and return the missed bounds."""
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else None
    most = next((value for name, value in PEAKS.items() if card and all(word in card for word in name.split())), None)
    speeds = ("tokens/s", "of bf16 peak") if card else ()
    table = Report(
        f"{options.model}, {options.rollouts} rollouts x {options.turns} turns, {options.prompt} shared tokens, {options.reply} + "
        f"{options.observation} new ones a turn, {options.train}, {card or 'cpu'}, at most {options.tokens_per_pack} tokens at once",
        ("tokens", "x of forest", "memory", "x of forest", "fastest", "median", "gradient differs", *speeds),
    )
    best = {mode: min(seconds) for mode, seconds in steps.seconds.items()}
    for mode in MODES:
        tokens = sum(len(pack) for group in work[mode] for pack in group)
        trained = steps.gradients[TRANSITIONS].items()
        differs = max(float((steps.gradients[mode][n] - g).norm() / g.norm().clamp_min(1e-12)) for n, g in trained)
        own, forests = peaks[mode], peaks[FOREST]
        share = f"{bench.operations(batch, work[mode]) / best[mode] / most:.1%}" if most and options.train == "full" else ""
        table.add(
            mode,
            f"{tokens:,}",
            f"{tokens / sum(len(pack) for group in work[FOREST] for pack in group):.2f}",
            "" if own is None else f"{own / 2**20:,.0f} MiB",
            "" if not own or not forests else f"{own / forests:.2f}",
            f"{best[mode]:.2f} s",
            f"{statistics.median(steps.seconds[mode]):.2f} s",
            f"{differs:.0e}",
            *((f"{tokens / best[mode]:,.0f}", share) if card else ()),
            ratio=best[mode] / best[FOREST],
            least=FASTER.get(mode),
        )
    return table.show() + more_memory(peaks)


def more_memory(peaks: dict[str, int | None]) -> list[str]:
    """Describe the modes that need less memory than the forest."""
    forests = peaks[FOREST]
    return [
        f"memory: the forest has {forests / own:.2f} times that of {mode}; at most 1 is wanted"
        for mode in (ROWS, TRANSITIONS)
        if (own := peaks[mode]) and forests and forests > own
    ]


if __name__ == "__main__":
    main()
