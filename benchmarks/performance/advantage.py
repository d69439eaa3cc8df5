"""Times credit and advantage of one step on arrays, against a plain numpy group mean and subtraction.

    python benchmarks/performance/advantage.py                      # 1024 rollouts x 8 turns, groups of eight
    python benchmarks/performance/advantage.py --rollouts 64        # smaller; the bounds hold for the default size

The reference has a reward and a group per transition. It takes the mean over each group's transitions and subtracts it. It has no credit,
unscored rollouts, zero-variance groups, or baselines by turn. A second reference does the same per rollout and copies the result to every
transition. It does an eighth of the arithmetic and has no bound.

Credit and advantage are the registered functions on `RolloutArrays` built from arrays (reward, rollout, turn, group). A tenth of the
rollouts have down to half as many turns. Three in ten transitions have their own reward. Building `RolloutArrays` is timed separately, and
so is GAE over tokens, against a plain backward loop over the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from bounds import Report, finish, take_turns

from agentlightning.registry.registry import registry
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.types import Reward, Task, Trajectory, Transition

MOST = 5.0
"""Maximum ratio to the reference."""
PAIRS = (
    ("identical", "grpo"),
    ("identical", "dr_grpo"),
    ("identical", "rloo"),
    ("identical", "reinforce_pp"),
    ("identical", "reinforce_pp_baseline"),
    ("identical", "opo"),
    ("last", "grpo"),
    ("discounted", "grpo"),
    ("discounted", "rloo"),
    ("per_step", "grpo"),
    ("per_step", "dr_grpo"),
)
SLICE = 4e-3
"""Seconds of one measurement. All have the same length, so that background load affects them equally."""


def arrays(rollouts: int, turns: int, group: int, tokens: int) -> RolloutArrays:
    rng = np.random.default_rng(0)
    length = np.where(rng.random(rollouts) < 0.1, rng.integers(turns // 2 or 1, turns + 1, rollouts), turns)
    rollout = np.repeat(np.arange(rollouts), length)
    size = len(rollout)
    return RolloutArrays.from_arrays(
        returns=rng.integers(0, 2, rollouts).astype(np.float64),
        group=np.arange(rollouts) // group,
        rollout=rollout,
        rewards=np.where(rng.random(size) < 0.3, rng.random(size), 0.0),
        tokens=np.full(size, tokens),
    )


def trajectories(rollouts: RolloutArrays) -> list[Trajectory]:
    """Return trajectories with these arrays, but without prompts."""
    nothing = np.empty(0, np.int32)
    attempts: list[Trajectory] = []
    for number, (start, stop) in enumerate(zip(rollouts.first[:-1], rollouts.first[1:], strict=True)):
        transitions = [
            Transition(
                completion_id=str(place),
                call_id=str(place),
                prompt_ids=nothing,
                response_ids=np.zeros(rollouts.tokens[place], np.int32),
                logprobs=None,
                versions=nothing,
                temperature=1.0,
                agent=None,
                index=turn,
                turn=turn,
                rewards=(Reward(attempt_id=str(number), value=float(rollouts.rewards[place]), name="own"),)
                if rollouts.rewarded[place]
                else (),
            )
            for turn, place in enumerate(range(start, stop))
        ]
        attempts.append(
            Trajectory(
                task=Task(str(rollouts.group[number]), None),
                rollout_id=str(number),
                attempt_id=str(number),
                group=str(rollouts.group[number]),
                index=number,
                mode="train",
                status="succeeded",
                reward=float(rollouts.returns[number]),
                transitions=tuple(transitions),
            )
        )
    return attempts


def loop(rollouts: RolloutArrays, gamma: float, lam: float) -> np.ndarray:
    """Return GAE with the outcome at the last token of a rollout; (tokens,)."""
    assert rollouts.values is not None
    advantages = np.zeros(len(rollouts.values))
    ends = rollouts.offsets[rollouts.first]
    for number, (start, stop) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        following = after = 0.0
        for token in range(stop - 1, start - 1, -1):
            reward = rollouts.returns[number] if token == stop - 1 else 0.0
            following = reward + gamma * after - rollouts.values[token] + gamma * lam * following
            advantages[token] = following
            after = rollouts.values[token]
    return advantages


def sliced(function: Callable[[], Any]) -> tuple[Callable[[], None], int]:
    """Return the function, repeated often enough to fill a slice."""
    for _ in range(2):
        started = time.thread_time()
        function()
        once = time.thread_time() - started
    calls = max(1, round(SLICE / once))

    def run() -> None:
        for _ in range(calls):
            function()

    return run, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="rollouts per group")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per reply, for GAE")
    parser.add_argument("--repeat", type=int, default=40)
    options = parser.parse_args()
    rollouts = arrays(options.rollouts, options.turns, options.group, options.tokens)
    missed = compare_parts(rollouts, options.repeat)
    compare_gae(rollouts, max(2, options.repeat // 8))
    finish(missed)


def part(kind: str, name: str) -> Callable[..., Any]:
    """Return a registered credit or advantage."""
    return registry().load(kind, name)


def compare_parts(rollouts: RolloutArrays, repeat: int) -> list[str]:
    """Compare credit and advantage with a group mean and subtraction. Return the missed bounds."""
    outcome, group, rollout, reward = rollouts.returns, rollouts.group, rollouts.rollout, rollouts.rewards
    of_transition = group[rollout]

    def over_transitions() -> np.ndarray:
        mean = np.bincount(of_transition, reward) / np.bincount(of_transition)
        return reward - mean[of_transition]

    def over_rollouts() -> np.ndarray:
        mean = np.bincount(group, outcome) / np.bincount(group)
        return (outcome - mean[group])[rollout]

    def pair(credit: str, advantage: str) -> Callable[[], Any]:
        earned, compared = part("credits", credit), part("advantages", advantage)
        return lambda: compared(rollouts, earned(rollouts))

    plain, whole_rollouts = "mean and subtraction", "the same of whole rollouts"
    runs = {plain: over_transitions, whole_rollouts: over_rollouts}
    runs |= {f"{credit} + {advantage}": pair(credit, advantage) for credit, advantage in PAIRS}
    slices = {name: sliced(run) for name, run in runs.items()}
    slice_seconds = take_turns({name: run for name, (run, _) in slices.items()}, repeat)
    seconds = {name: [value / slices[name][1] for value in values] for name, values in slice_seconds.items()}
    report = Report(
        f"credit and advantage: {len(rollouts)} rollouts, {rollouts.transitions} transitions", ("fastest", "median", "x of rollouts")
    )
    best = {name: min(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        report.add(
            name,
            f"{1e6 * best[name]:.0f} us",
            f"{1e6 * statistics.median(values):.0f} us",
            f"{best[name] / best[whole_rollouts]:.1f}",
            ratio=None if name == plain else best[name] / best[plain],
            most=MOST if " + " in name else None,
        )
    return report.show()


def compare_gae(rollouts: RolloutArrays, repeat: int) -> None:
    """Check GAE against a plain loop. Print the seconds of both, and of building the arrays."""
    attempts = trajectories(rollouts)
    judged = replace(rollouts, values=np.random.default_rng(1).random(int(rollouts.tokens.sum())))
    gae, returns = part("advantages", "gae"), part("credits", "identical")(judged)
    ours, theirs = gae(judged, returns, gamma=0.99, lam=0.95, whiten=False).advantage, loop(judged, 0.99, 0.95)
    if not np.allclose(ours, theirs, rtol=0, atol=1e-9):
        raise SystemExit(f"GAE differs from the loop by {np.abs(ours - theirs).max():.1e}")
    runs = {
        "RolloutArrays from trajectories": lambda: RolloutArrays.of(attempts),
        "GAE, a plain loop": lambda: loop(judged, 0.99, 0.95),
        "GAE": lambda: gae(judged, returns, gamma=0.99, lam=0.95, whiten=False),
    }
    seconds = take_turns(runs, repeat)
    report = Report(f"apart: building the arrays, and GAE over {len(ours):,} tokens")
    for name, values in seconds.items():
        report.times(name, values, seconds["GAE, a plain loop"] if name == "GAE" else None)
    report.show()


if __name__ == "__main__":
    main()
