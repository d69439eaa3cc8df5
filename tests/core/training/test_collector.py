"""The collector's wait for rollouts, where the runners end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agentlightning.errors import AgentError, EngineError
from agentlightning.stores.common import open_store
from agentlightning.training.collector import Collector
from agentlightning.types import Rollout, Task


@pytest.mark.parametrize("error", [EngineError("The teacher stays away."), None])
async def test_runners_that_end_just_after_the_wait_are_an_error_with_their_cause(error: Exception | None) -> None:
    runners: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(change: Any, *others: Any) -> None:
        change.close()
        if error is None:
            runners.set_result(None)
        else:
            runners.set_exception(error)

    controls: Any = SimpleNamespace(wait=wait, progress=SimpleNamespace(rollouts=lambda *_: None))
    store = open_store("memory:")
    collector = Collector(store, runners, lambda *_: None, controls)  # type: ignore[arg-type]
    with pytest.raises(AgentError if error is None else EngineError, match="runners ended" if error is None else "stays away"):
        await collector.run([Rollout(task=Task("t", "x"), mode="train", group="g")])
    await store.close()
