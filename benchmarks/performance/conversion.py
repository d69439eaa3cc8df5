"""Times the conversion of trajectories to a forest (`make_batch`), against one pass that concatenates the same numbers.

    python benchmarks/performance/conversion.py                          # 64 rollouts x 12 turns, 1.7 million captured tokens
    python benchmarks/performance/conversion.py --rollouts 8 --turns 4   # smaller; the bounds hold for the default size

The reference concatenates ids, log-probabilities, and masks of all transitions into three arrays. A trainer with one row per transition
starts from these, before padding. Both start from trajectories as the store returns them: read-only int32 and float32 arrays, a separate
prompt array per transition, and `continues` as set by the gateway.

    one agent        each rollout has its own prompt; a turn's prompt is the previous prompt, its reply, and an observation
    two agents       A1 B1 A2 B2 ..., each with its own history: two chains per rollout, as many turns, longer prompts
    groups of eight  eight rollouts share each prompt
    no `continues`   one agent, but no transition names the reply it continues: the forest searches from the root

The script then counts the work: tokens compared and copied (`Batch.stats`), for a smaller input with ten times the rollouts or turns. Ten
times the turns give more than ten times the tokens, because each turn repeats its history. The printed ratio is therefore the growth of
work for ten times the captured tokens. Up to 10.1 counts as linear.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from bounds import Report, finish, take_turns
from msgspec import structs

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.types import Task, Trajectory, Transition

MOST = 2.0
"""Maximum ratio to the reference pass."""
GROWTH = 10.1
"""Maximum ratio of the work for ten times the tokens."""


def frozen(*parts: np.ndarray) -> np.ndarray:
    array = np.concatenate(parts)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the trajectories. Sizes are in tokens."""

    rollouts: int
    turns: int
    """Model calls per rollout."""
    prompt: int
    reply: int
    observation: int
    """Tokens added between two turns."""
    agents: int = 1
    """Number of agents that take turns, each with its own history."""
    group: int = 1
    """Rollouts that share a prompt."""
    continues: bool = True
    """Whether a transition names the reply that its prompt continues."""
    vocabulary: int = 49152


def trajectories(shape: Shape) -> list[Trajectory]:
    """Return the rollouts of a shape, the same on every call."""
    rng = np.random.default_rng(0)
    rollouts: list[Trajectory] = []
    for number in range(shape.rollouts):
        if number % shape.group == 0:
            prompts = [rng.integers(0, shape.vocabulary, shape.prompt, np.int32) for _ in range(shape.agents)]
        rollouts.append(
            Trajectory(
                task=Task(f"{number // shape.group:06}", None),
                rollout_id=str(number),
                attempt_id=str(number),
                group=f"{number // shape.group:06}",
                index=number % shape.group,
                mode="train",
                status="succeeded",
                reward=float(number % 2),
                transitions=tuple(turns_of(shape, number, prompts, rng)),
            )
        )
    return rollouts


def turns_of(shape: Shape, number: int, prompts: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[Transition]:
    """Yield the transitions of one rollout. It starts with one prompt per agent."""
    history, last = list(prompts), [-1] * shape.agents
    for index in range(shape.turns):
        agent = index % shape.agents
        response = frozen(rng.integers(0, shape.vocabulary, shape.reply, np.int32))
        prompt_ids = frozen(history[agent])
        yield Transition(
            completion_id=f"{number}.{index}",
            call_id=f"{number}.{index}",
            prompt_ids=prompt_ids,
            response_ids=response,
            logprobs=frozen(rng.normal(-1, 0.1, shape.reply).astype(np.float32)),
            versions=frozen(np.zeros(shape.reply, np.int32)),
            temperature=1.0,
            agent="AB"[agent],
            index=index,
            turn=index // shape.agents,
            continues=last[agent] if shape.continues and last[agent] >= 0 else None,
        )
        last[agent] = index
        history[agent] = frozen(prompt_ids, response, rng.integers(0, shape.vocabulary, shape.observation, np.int32))


def convert(rollouts: Sequence[Trajectory]) -> Batch:
    """Build a batch with nonzero advantages in every group."""
    return make_batch(rollouts, [np.full(len(t.transitions), 1.0 if t.index % 2 else -1.0) for t in rollouts])


def one_pass(rollouts: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, log-probabilities (NaN on prompts), and whether a token was sampled; each (captured tokens,)."""
    ids: list[np.ndarray] = []
    logprobs: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for rollout in rollouts:
        for t in rollout.transitions:
            ids += [t.prompt_ids, t.response_ids]
            logprobs += [np.full(len(t.prompt_ids), np.nan, np.float32), t.logprobs]
            masks += [np.zeros(len(t.prompt_ids), np.bool_), np.ones(len(t.response_ids), np.bool_)]
    return np.concatenate(ids), np.concatenate(logprobs), np.concatenate(masks)


def chains(batch: Batch) -> int:
    """Return the number of root-to-leaf paths."""
    return int((batch.end == np.arange(1, len(batch) + 1)).sum())


def _without_continues(trajectory: Trajectory) -> Trajectory:
    return structs.replace(trajectory, transitions=tuple(structs.replace(turn, continues=None) for turn in trajectory.transitions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=12, help="model calls per rollout")
    parser.add_argument("--prompt", type=int, default=512, help="tokens in the first prompt")
    parser.add_argument("--reply", type=int, default=100, help="tokens sampled per turn")
    parser.add_argument("--observation", type=int, default=200, help="tokens added between two turns")
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    shape = Shape(
        rollouts=options.rollouts, turns=options.turns, prompt=options.prompt, reply=options.reply, observation=options.observation
    )
    finish(compare_seconds(shape, options.repeat) + compare_work(shape))


def compare_seconds(shape: Shape, repeat: int) -> list[str]:
    """Compare `make_batch` with the reference. Return the missed bounds."""
    alone = trajectories(shape)
    # An agent that acts every second turn has half the history, so a longer prompt keeps the token count equal.
    longer = shape.prompt + shape.turns * (shape.reply + shape.observation) // 4
    variants = {
        "one agent": alone,
        "two agents": trajectories(replace(shape, prompt=longer, agents=2)),
        "groups of eight": trajectories(replace(shape, group=8)),
        "no `continues`": [_without_continues(trajectory) for trajectory in alone],
    }
    missed: list[str] = []
    for name, rollouts in variants.items():
        batch = convert(rollouts)
        expected = shape.rollouts * (2 if name == "two agents" and shape.turns > 1 else 1)
        if chains(batch) != expected:
            raise SystemExit(f"{name}: {chains(batch)} chains; expected {expected}")
        seconds = take_turns(
            {"the reference": lambda rollouts=rollouts: one_pass(rollouts), name: lambda rollouts=rollouts: convert(rollouts)}, repeat
        )
        stats = batch.stats
        report = Report(
            f"{name}: {stats.captured_tokens:,} captured tokens in {sum(len(t.transitions) for t in rollouts)} transitions, "
            f"{len(batch):,} in the forest, {chains(batch)} chains"
        )
        report.times("one pass that concatenates", seconds["the reference"])
        report.times("make_batch", seconds[name], seconds["the reference"], MOST if name != "no `continues`" else None)
        missed += report.show()
    return missed


def compare_work(shape: Shape) -> list[str]:
    """Count the work for ten times the tokens. Return the missed bounds."""
    report = Report("the work counted: tokens compared + copied, for ten times the tokens", ("captured", "compared", "copied"))
    small_shape = replace(
        shape, rollouts=shape.rollouts // 8 or 1, prompt=shape.prompt // 4, reply=shape.reply // 4, observation=shape.observation // 4
    )
    for title, settings, (rollouts, turns) in (
        ("one agent", {}, (10, 1)),
        ("two agents", {"agents": 2}, (10, 1)),
        ("groups of eight", {"group": 8}, (10, 1)),
        ("one group", {"group": 10 * small_shape.rollouts}, (10, 1)),
        ("no `continues`", {"continues": False}, (10, 1)),
        ("one agent", {}, (1, 10)),
    ):
        base = replace(small_shape, **settings)
        grown = replace(base, rollouts=base.rollouts * rollouts, turns=base.turns * turns)
        small, large = (convert(trajectories(size)).stats for size in (base, grown))
        work = (large.compared_tokens + large.copied_tokens) / (small.compared_tokens + small.copied_tokens)
        report.add(
            f"{title}, ten times the {'rollouts' if rollouts > 1 else 'turns'}",
            *(f"{getattr(large, name) / getattr(small, name):.2f} x" for name in ("captured_tokens", "compared_tokens", "copied_tokens")),
            ratio=work * 10 / (large.captured_tokens / small.captured_tokens),
            most=GROWTH,
        )
    return report.show()


if __name__ == "__main__":
    main()
