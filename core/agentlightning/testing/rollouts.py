"""Small rollouts for tests of credits, advantages, losses and trainers. A field that a test does not name has a plain default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentlightning.types import Task, Trajectory, Transition, floats, ints

Ids = Sequence[int] | NDArray[Any]


def transition(index: int, prompt: Ids, response: Ids, **fields: Any) -> Transition:
    """A sampled transition. `id` is short for `completion_id`; `logprobs` and `versions` may be one number for all tokens."""
    count = len(response)
    logprobs, versions = fields.pop("logprobs", np.linspace(-1, -0.5, count)), fields.pop("versions", 0)
    defaults: dict[str, Any] = {
        "completion_id": fields.pop("id", f"c{index}"),
        "call_id": f"call{index}",
        "temperature": 1.0,
        "agent": None,
        "turn": index,
    }
    return Transition(
        index=index,
        prompt_ids=ints(prompt),
        response_ids=ints(response),
        logprobs=None if logprobs is None else floats(_per_token(logprobs, count)),
        versions=ints(_per_token(versions, count)),
        **{**defaults, **fields},
    )


def trajectory(index: int, *transitions: Transition, group: str = "g", reward: float | None = 1.0, **fields: Any) -> Trajectory:
    """A rollout that succeeded. Its task takes the name of the group, and its ids are the group and the index: `g0`."""
    name = f"{group}{index}"
    defaults: dict[str, Any] = {"task": Task(group, None), "rollout_id": name, "attempt_id": name, "mode": "train", "status": "succeeded"}
    return Trajectory(group=group, index=index, reward=reward, transitions=transitions, **{**defaults, **fields})


def conversation(prompt: Ids, turns: Iterable[tuple[Ids, Ids]], *, id: str = "c", **fields: Any) -> list[Transition]:
    """Transitions of which each continues the one before. A turn is a reply and the tokens that come after it."""
    history, transitions = [*prompt], list[Transition]()
    for turn, (reply, observation) in enumerate(turns):
        transitions.append(transition(turn, history, reply, id=f"{id}.{turn}", call_id=f"{id}.{turn}", **fields))
        history = [*history, *reply, *observation]
    return transitions


def _per_token(values: ArrayLike, count: int) -> ArrayLike:
    return np.full(count, values) if np.ndim(values) == 0 else values
