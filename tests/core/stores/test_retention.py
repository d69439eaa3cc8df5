"""Old rollouts go, with their records and their space on the disk. What a step in progress needs stays."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from agentlightning.contracts.store import StoredRollout
from agentlightning.stores.retention import prune
from agentlightning.testing.store import completion, ended_rollout, rollouts
from agentlightning.types import Completion, Span
from agentlightning_sqlite.store import SQLiteStore

DAY = 86400.0


def aged(days: float, **settings: object) -> StoredRollout:
    """A rollout that ended so many days ago, with a large record."""
    state, (records,) = ended_rollout(turns=3, **settings)
    attempt = replace(records.attempt, finished=time.time() - days * DAY)
    span = Span(attempt_id=attempt.id, kind="tool", name="t", attributes={"output": "x" * 20_000})
    return replace(state, attempts=(attempt,)), (replace(records, attempt=attempt, spans=(span,)),)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob("agl.db*"))


async def test_a_dry_run_says_what_would_go_and_a_real_one_gives_the_space_back(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    store = SQLiteStore(path)
    old, young = [aged(40) for _ in range(300)], [aged(1) for _ in range(10)]
    await store.put([*old, aged(50, group="g", step=None), aged(60, mode="production"), *young])
    await store.add(rollouts(1, group="g"))
    dry = await prune(store, older_than=30 * DAY)
    assert dict(dry.expired) == {("train", "succeeded"): 300, ("production", "succeeded"): 1}
    assert (dry.in_progress, dry.kept, dry.deleted) == (1, 11, 0)
    assert len((await store.list(limit=999))[0]) == 313
    reported: list[int] = []
    real = await prune(store, older_than=30 * DAY, mode="train", delete=True, report=reported.append)
    assert (real.expired.total(), real.deleted, reported[-1]) == (300, 300, 313)
    before = size(path)
    await store.compact()
    assert size(path) < before / 5
    for state, records in young:
        assert (await store.read(state.rollout.id))[1] == records
    (claimed,) = await store.claim("w", lease=60)
    assert claimed[0].group == "g"
    await store.close()


async def test_a_status_limits_what_goes(tmp_path: Path) -> None:
    store = SQLiteStore()
    failed, (records,) = ended_rollout("failed")
    await store.put([aged(3), (failed, (records,))])
    assert (await prune(store, older_than=DAY, status=["failed"], delete=True)).deleted == 1
    assert [state.status for state in (await store.list())[0]] == ["succeeded"]


async def test_a_conversation_written_after_a_deletion_by_another_process_is_exact(tmp_path: Path) -> None:
    """A writer remembers conversations. After a deletion, SQLite uses the numbers of their records again."""
    writer, other = SQLiteStore(tmp_path / "agl.db"), SQLiteStore(tmp_path / "agl.db")

    async def record(*prompts: list[int]) -> tuple[str, list[Completion]]:
        (rollout,) = rollouts(1)
        await writer.add([rollout])
        ((_, attempt),) = await writer.claim("w", lease=60)
        first = completion(attempt.id, prompts[0], [3])
        second = completion(attempt.id, prompts[1], [5], continues=first.id)
        for reply in (first, second):
            await writer.record([reply])
        await writer.finish(attempt.id, "succeeded")
        return rollout.id, [first, second]

    old, _ = await record([1, 2], [1, 2, 3, 4])
    assert await other.delete([old]) == 1
    new, replies = await record([9], [1, 2, 3, 4])  # the second one starts with the deleted conversation
    _, (records,) = await other.read(new)
    assert list(records.completions) == replies
    await writer.close()
    await other.close()
