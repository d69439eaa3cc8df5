"""`agl.attach`: run code in a rollout that its context does not name."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from agentlightning.capture.model_call import no_model_call
from agentlightning.capture.recorder import Recorder, detach, use
from agentlightning.errors import LightningError


@contextmanager
def attach(rollout: Recorder | None) -> Generator[Recorder | None]:
    """Run the block in a rollout: model calls, spans, rewards and notes belong to it.

    Use it where code works for many rollouts, or started before them: a queue's worker, an actor runtime, a server. Threads, tasks and
    pools that start in a rollout need it only if they serve other rollouts too.

        jobs.put((agl.current(), question))         # in the rollout

        rollout, question = jobs.get()              # in the worker
        with agl.attach(rollout):
            answer = model.invoke(question)

    `agl.attach(None)` takes the block out of every rollout. Its model calls go to their own addresses, and nothing is recorded.

    Raises `LightningError` for a rollout that has ended, and for a value that `agl.current()` does not return.
    """
    if rollout is None:
        with no_model_call(), detach():
            yield None
        return
    if not isinstance(rollout, Recorder):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LightningError(f"agl.attach() got {rollout!r:.80}. Give it the value of agl.current(), taken inside the rollout.")
    if rollout.closed:
        raise LightningError(
            f"agl.attach() got attempt {rollout.attempt.id}, which has ended. Wait for the worker's answer before the rollout ends."
        )
    with no_model_call(), use(rollout):
        yield rollout
