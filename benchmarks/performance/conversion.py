"""Seconds from trajectories to a forest (`make_batch`), beside one pass that concatenates the same numbers, and the work that it counts.

    python benchmarks/performance/conversion.py                          # 64 rollouts x 12 turns, 1.7 million captured tokens
    python benchmarks/performance/conversion.py --rollouts 8 --turns 4   # smaller; bounds are made for the default

The reference writes ids, log-probabilities and mask of prompt and response of every transition, one after the other, into three arrays:
what a trainer with one row for each transition starts from, before any padding. Both begin with trajectories as the store gives them:
read-only int32 and float32 arrays, each prompt an array of its own, `continues` set as the gateway sets it.

    one agent        every rollout has a prompt of its own; a turn's prompt is the last prompt, its reply, and an observation
    two agents       A1 B1 A2 B2 ..., each with its own growing history: two chains in each rollout. Turns are the same, prompts longer
    groups of eight  eight rollouts share each prompt
    no `continues`   one agent, without word of which reply a prompt continues: the forest finds it from the root

Then the work: tokens compared and copied, as the code counts them (`Batch.stats`), when a smaller input grows ten times in rollouts or in
turns. Ten times the turns is more than ten times the tokens, since each repeats its history; so the ratio is the growth of the work for
every tenfold growth of the captured tokens, and the work is linear when that is at most 10.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from bounds import Report, finish, take_turns
from msgspec.structs import replace

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.types import Task, Trajectory, Transition

MOST = 2.0
"""Times the reference pass."""
GROWTH = 10.1
"""Times the work, for ten times the tokens."""


def frozen(*parts: np.ndarray) -> np.ndarray:
    made = np.concatenate(parts)
    made.flags.writeable = False
    return made


def trajectories(
    rollouts: int,
    turns: int,
    prompt: int,
    reply: int,
    observation: int,
    *,
    agents: int = 1,
    group: int = 1,
    continues: bool = True,
    vocabulary: int = 49152,
) -> list[Trajectory]:
    """`group` rollouts share a prompt; `agents` take turns, each with its own history."""
    rng = np.random.default_rng(0)
    found: list[Trajectory] = []
    for number in range(rollouts):
        if number % group == 0:
            shared = [rng.integers(0, vocabulary, prompt, np.int32) for _ in range(agents)]
        history, last = list(shared), [-1] * agents
        transitions: list[Transition] = []
        for index in range(turns):
            agent = index % agents
            response = frozen(rng.integers(0, vocabulary, reply, np.int32))
            prompt_ids = frozen(history[agent])
            transitions.append(
                Transition(
                    completion_id=f"{number}.{index}",
                    call_id=f"{number}.{index}",
                    prompt_ids=prompt_ids,
                    response_ids=response,
                    logprobs=frozen(rng.normal(-1, 0.1, reply).astype(np.float32)),
                    versions=frozen(np.zeros(reply, np.int32)),
                    temperature=1.0,
                    agent="AB"[agent],
                    index=index,
                    turn=index // agents,
                    continues=last[agent] if continues and last[agent] >= 0 else None,
                )
            )
            last[agent] = index
            history[agent] = frozen(prompt_ids, response, rng.integers(0, vocabulary, observation, np.int32))
        found.append(
            Trajectory(
                task=Task(f"{number // group:06}", None),
                rollout_id=str(number),
                attempt_id=str(number),
                group=f"{number // group:06}",
                index=number % group,
                mode="train",
                status="succeeded",
                reward=float(number % 2),
                transitions=tuple(transitions),
            )
        )
    return found


def convert(found: Sequence[Trajectory]) -> Batch:
    """With advantages that leave no group without signal."""
    return make_batch(found, [np.full(len(t.transitions), 1.0 if t.index % 2 else -1.0) for t in found])


def one_pass(found: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(captured tokens,) each: ids, log-probabilities (NaN on prompts), and whether a token was sampled."""
    ids: list[np.ndarray] = []
    logprobs: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for each in found:
        for t in each.transitions:
            ids += [t.prompt_ids, t.response_ids]
            logprobs += [np.full(len(t.prompt_ids), np.nan, np.float32), t.logprobs]
            masks += [np.zeros(len(t.prompt_ids), np.bool_), np.ones(len(t.response_ids), np.bool_)]
    return np.concatenate(ids), np.concatenate(logprobs), np.concatenate(masks)


def chains(batch: Batch) -> int:
    """Paths from a root to a leaf."""
    return int((batch.end == np.arange(1, len(batch) + 1)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=12, help="calls of the model in a rollout")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the first prompt")
    parser.add_argument("--reply", type=int, default=100, help="tokens sampled in a turn")
    parser.add_argument("--observation", type=int, default=200, help="tokens that somebody else adds between two turns")
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    size = options.rollouts, options.turns, options.prompt, options.reply
    alone = trajectories(*size, options.observation)
    # an agent that has every second turn makes half the history: a longer prompt gives as many tokens again
    longer = options.prompt + options.turns * (options.reply + options.observation) // 4
    variants = {
        "one agent": alone,
        "two agents": trajectories(options.rollouts, options.turns, longer, options.reply, options.observation, agents=2),
        "groups of eight": trajectories(*size, options.observation, group=8),
        "no `continues`": [replace(t, transitions=tuple(replace(each, continues=None) for each in t.transitions)) for t in alone],
    }
    missed: list[str] = []
    for name, found in variants.items():
        batch = convert(found)
        expected = options.rollouts * (2 if name == "two agents" and options.turns > 1 else 1)
        if chains(batch) != expected:
            raise SystemExit(f"{name}: {chains(batch)} chains; expected {expected}")
        seconds = take_turns(
            {"the reference": lambda found=found: one_pass(found), name: lambda found=found: convert(found)}, options.repeat
        )
        stats = batch.stats
        report = Report(
            f"{name}: {stats.captured_tokens:,} captured tokens in {sum(len(t.transitions) for t in found)} transitions, "
            f"{len(batch):,} in the forest, {chains(batch)} chains"
        )
        report.times("one pass that concatenates", seconds["the reference"])
        report.times("make_batch", seconds[name], seconds["the reference"], MOST if name != "no `continues`" else None)
        missed += report.show()

    report = Report("the work counted: tokens compared + copied, for ten times the tokens", ("captured", "compared", "copied"))
    size = options.rollouts // 8 or 1, options.turns, options.prompt // 4, options.reply // 4
    for what, settings, times in (
        ("one agent", {}, (10, 1)),
        ("two agents", {"agents": 2}, (10, 1)),
        ("groups of eight", {"group": 8}, (10, 1)),
        ("one group", {"group": 10 * size[0]}, (10, 1)),
        ("no `continues`", {"continues": False}, (10, 1)),
        ("one agent", {}, (1, 10)),
    ):
        small, large = (
            convert(trajectories(size[0] * rollouts, size[1] * turns, *size[2:], options.observation // 4, **settings)).stats
            for rollouts, turns in ((1, 1), times)
        )
        work = (large.compared_tokens + large.copied_tokens) / (small.compared_tokens + small.copied_tokens)
        report.add(
            f"{what}, ten times the {'rollouts' if times[0] > 1 else 'turns'}",
            *(f"{getattr(large, name) / getattr(small, name):.2f} x" for name in ("captured_tokens", "compared_tokens", "copied_tokens")),
            ratio=work * 10 / (large.captured_tokens / small.captured_tokens),
            most=GROWTH,
        )
    finish(missed + report.show())


if __name__ == "__main__":
    main()
