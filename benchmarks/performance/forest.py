"""Tokens and seconds of one gradient, computed as a forest, as root-to-leaf rows, and as one row for each transition.

    python benchmarks/performance/forest.py                                    # 4 rollouts x 3 turns
    python benchmarks/performance/forest.py --rollouts 8 --turns 8 --prompt 512
    python benchmarks/performance/forest.py --model tiny --block 128 512 2048  # compare sizes of attention blocks

The rollouts share their prompt, every turn adds a reply and an observation. The modes run in turn, several times; medians are printed,
with the ratio to the forest and the difference of the gradient (relative, largest over the parameters).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from transformers import AutoModelForCausalLM

from agentlightning.model import Task, Trajectory, Transition
from agentlightning.models import cache_folder, find_model
from agentlightning.rl.batch import Batch, make_batch
from agentlightning.rl.packs import Pack
from agentlightning_torch.attention import BLOCK
from agentlightning_torch.forward import Scores, group_rows, score_forest, score_rows
from agentlightning_torch.optim import trained_parameters

Work = list[Callable[[], Scores]]


def rollouts(count: int, turns: int, prompt: int, reply: int, observation: int, vocabulary: int) -> Batch:
    """One group, with advantages that sum to zero."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, vocabulary, prompt)
    found: list[Trajectory] = []
    for index in range(count):
        history, transitions = shared, list[Transition]()
        for turn in range(turns):
            response = rng.integers(0, vocabulary, reply)
            transitions.append(
                Transition(
                    completion_id=f"{index}.{turn}",
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
            history = np.concatenate([history, response, rng.integers(0, vocabulary, observation)])
        name = str(index)
        found.append(
            Trajectory(
                task=Task("t", None),
                rollout_id=name,
                attempt_id=name,
                group="g",
                index=index,
                mode="train",
                status="succeeded",
                reward=1.0,
                transitions=tuple(transitions),
            )
        )
    return make_batch(found, [np.full(turns, 1.0 if k % 2 else -1.0) for k in range(count)])


def gradient(batch: Batch, work: Work, parameters: dict[str, torch.nn.Parameter]) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds of forward and backward over all the work, and the gradient."""
    for p in parameters.values():
        p.grad = None
    started = time.perf_counter()
    for score in work:
        scores = score()
        scale = torch.from_numpy(-batch.weight[scores.index] * batch.advantage[scores.index]).to(scores.logprob)
        (scale * scores.logprob).sum().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, {n: p.grad.detach().clone() for n, p in parameters.items() if p.grad is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a name that `agl models` knows, a folder, or `tiny`; default: smollm2-135m where it is cached, else tiny"
    )
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=160, help="tokens that the rollouts share")
    parser.add_argument("--reply", type=int, default=24, help="tokens sampled in a turn")
    parser.add_argument("--observation", type=int, default=24, help="tokens added between turns")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens computed at once")
    parser.add_argument("--train", default="full", help="full or top:N")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parser.add_argument("--block", type=int, nargs="+", default=[BLOCK], help="attention blocks to compare; a huge one is the dense mask")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()

    cached = (cache_folder() / "models" / "smollm2-135m" / "config.json").is_file()
    name = options.model or ("smollm2-135m" if cached else "tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        if name == "tiny":
            from agentlightning_torch.testing import tiny_model

            path = tiny_model(folder, context=8192).path
        else:
            path = find_model(name).path
        model = (
            AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, options.dtype), attn_implementation="sdpa").to(device).eval()
        )
    parameters = trained_parameters(model, options.train)
    batch = rollouts(
        options.rollouts, options.turns, options.prompt, options.reply, options.observation, model.config.get_text_config().vocab_size
    )

    def forest(block: int) -> tuple[Work, list[Pack]]:
        packs = batch.packs(options.max_tokens)
        return [lambda p=p: score_forest(model, batch, p, block=block) for p in packs], packs

    def rows(packs: list[Pack]) -> tuple[Work, list[Pack]]:
        return [lambda g=g: score_rows(model, batch, g) for g in group_rows(packs, options.max_tokens)], packs

    modes = {f"forest (blocks of {b})" if len(options.block) > 1 else "forest": forest(b) for b in options.block}
    modes |= {"root-to-leaf rows": rows(batch.rows()), "one row per transition": rows(batch.transition_rows())}
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    with Progress(SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("computing", total=len(modes) * (options.repeat + 1))
        for turn in range(options.repeat + 1):
            for mode, (work, _) in modes.items():
                progress.update(task, description=mode)
                took, gradients[mode] = gradient(batch, work, parameters)
                if turn:  # the first is a warm-up
                    seconds[mode].append(took)
                progress.advance(task)

    table = Table(
        title=f"{name}, {options.rollouts} rollouts x {options.turns} turns, {options.prompt} shared tokens, {options.train}, {device}"
    )
    for column in ("", "tokens", "ratio", "seconds", "ratio", "gradient differs by"):
        table.add_column(column, justify="left" if not column else "right")
    first = next(iter(modes))
    for mode, (_, packs) in modes.items():
        tokens, median = sum(map(len, packs)), statistics.median(seconds[mode])
        base = sum(map(len, modes[first][1]))
        differs = max(
            float((gradients[mode][n] - g).norm() / g.norm().clamp_min(1e-12)) for n, g in gradients["one row per transition"].items()
        )
        table.add_row(
            mode,
            f"{tokens:,}",
            f"{tokens / base:.2f}",
            f"{median:.3f}",
            f"{median / statistics.median(seconds[first]):.2f}",
            f"{differs:.1e}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
