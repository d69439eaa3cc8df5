"""The rollout of code in threads, in pools, in workers that started before it, and outside every rollout."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import Context, ContextVar
from multiprocessing.pool import ThreadPool
from typing import Any
from weakref import ref

import pytest
from openai import OpenAI

import agentlightning as agl
from agentlightning.capture.recorder import current
from agentlightning.errors import LightningError, RoutingError
from agentlightning.stores.common import open_store
from agentlightning.testing.world import World

NOWHERE = "http://127.0.0.1:9/v1"
"""Nobody listens there: a call that leaves its rollout fails."""
CLIENT = OpenAI(base_url=NOWHERE, api_key="the user's key", max_retries=0)


def ask(question: str) -> str:
    """An agent's model call, with a client that knows nothing of the rollout."""
    answer = CLIENT.chat.completions.create(model="famous", messages=[{"role": "user", "content": question}])
    return str(answer.choices[0].message.content)


def in_a_thread(question: str) -> str:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask(question)))
    thread.start()
    thread.join()
    return answers[0]


def in_a_subclass_of_thread(question: str) -> str:
    class Asking(threading.Thread):
        answer = ""

        def run(self) -> None:
            self.answer = ask(question)

    thread = Asking()
    thread.start()
    thread.join()
    return thread.answer


def in_an_executor(question: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask, question).result()


def in_a_thread_of_a_job(question: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_a_thread, question).result()


def in_a_thread_pool(question: str) -> str:
    with ThreadPool(2) as pool:
        answers = [
            pool.apply(ask, (question,)),
            *pool.map(ask, [question] * 2),
            *pool.imap(ask, [question]),
            *pool.starmap(ask, [(question,)]),
        ]
    assert len(set(answers)) == 1
    return answers[0]


def in_the_executor_of_a_loop(question: str) -> str:
    async def main() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, ask, question)

    return asyncio.run(main())


WAYS: list[tuple[Callable[[str], str], int]] = [
    (in_a_thread, 1),
    (in_a_subclass_of_thread, 1),
    (in_an_executor, 1),
    (in_a_thread_of_a_job, 1),
    (in_a_thread_pool, 5),
    (in_the_executor_of_a_loop, 1),
]


@pytest.mark.parametrize(("way", "calls"), WAYS, ids=[way.__name__ for way, _ in WAYS])
async def test_a_call_in_a_thread_of_a_rollout_belongs_to_it_with_eight_rollouts_at_once(
    world: World, routed: None, way: Callable[[str], str], calls: int
) -> None:
    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            assert await asyncio.to_thread(way, f"question {number}") == f"question {number}"
            assert [call.status for call in (await world.records(recorder)).calls] == ["completed"] * calls

    await asyncio.gather(*(rollout(number) for number in range(8)))


async def test_a_shared_executor_asks_for_the_rollout_that_submits(world: World, routed: None) -> None:
    with ThreadPoolExecutor(1) as shared:

        async def rollout(number: int) -> None:
            async with world.rollout(number) as recorder:
                await asyncio.get_running_loop().run_in_executor(shared, ask, f"question {number}")
                assert len((await world.records(recorder)).calls) == 1

        await asyncio.gather(*(rollout(number) for number in range(8)))
        # A rollout started the pool's thread, which serves everybody.
        assert shared.submit(current).result() is None


async def test_outside_rollouts_threads_and_pools_start_without_a_context(world: World) -> None:
    async with world.rollout():
        pass
    variable: ContextVar[str] = ContextVar("variable", default="default")
    variable.set("of the caller")
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(variable.get()))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        seen.append(pool.submit(variable.get).result())
    assert seen == ["default", "default"]
    async with world.rollout(1):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(variable.get).result() == "of the caller"


async def test_a_thread_that_ended_keeps_no_rollout_in_memory(world: World) -> None:
    thread = threading.Thread(target=lambda: None)
    async with world.rollout() as recorder:
        thread.start()
        thread.join()
        kept = ref(recorder)
    del recorder
    gc.collect()
    assert kept() is None
    assert not thread.is_alive()


async def test_the_patches_of_many_rollouts_are_one(world: World) -> None:
    async with world.rollout():
        first = threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async
    async with world.rollout(1), world.rollout(2):
        assert (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async) == first


# --- workers that started before --------------------------------------------------------------------------------------------------------


class Worker:
    """Serves jobs of every rollout, in a thread that started before them."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[tuple[Any, str, Future[str]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, rollout: Any, question: str) -> str:
        future: Future[str] = Future()
        self.jobs.put((rollout, question, future))
        return future.result(20)

    def _work(self) -> None:
        while True:
            rollout, question, future = self.jobs.get()
            try:
                with nullcontext() if rollout == "lost" else agl.attach(rollout):
                    future.set_result(ask(question))
            except Exception as error:
                future.set_exception(error)


async def test_a_worker_that_attaches_serves_eight_rollouts_at_once(world: World, routed: None) -> None:
    worker = Worker()

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            answer = await asyncio.to_thread(worker.ask, agl.current(), f"question {number}")
            assert answer == f"question {number}"
            assert len((await world.records(recorder)).calls) == 1

    await asyncio.gather(*(rollout(number) for number in range(8)))


async def test_a_call_outside_every_rollout_is_an_error_that_says_how_to_attach(world: World, routed: None) -> None:
    worker = Worker()
    async with world.rollout() as recorder:
        with pytest.raises(
            RoutingError, match=r"(?s)'famous'.*127\.0\.0\.1:9.*agl\.current\(\).*agl\.attach\(rollout\).*agl\.attach\(None\)"
        ):
            await asyncio.to_thread(worker.ask, "lost", "question")
        assert (await world.records(recorder)).calls == ()
    with pytest.raises(Exception, match="Connection error"):  # no rollout is open: the call goes where it says
        await asyncio.to_thread(worker.ask, "lost", "question")


async def test_the_rollouts_own_model_outside_is_an_error_too_and_other_models_are_left_alone(world: World, routed: None) -> None:
    def outside(model: str) -> Any:
        return CLIENT.chat.completions.create(model=model, messages=[])

    async with world.rollout() as recorder:
        with pytest.raises(RoutingError):
            await asyncio.to_thread(Context().run, outside, recorder.llm.model)
        with pytest.raises(Exception, match="Connection error"):
            await asyncio.to_thread(Context().run, outside, "judge")


async def test_a_call_that_is_detached_on_purpose_goes_where_it_says(world: World, routed: None) -> None:
    async with world.rollout() as recorder:
        with agl.attach(None), pytest.raises(Exception, match="Connection error"):
            await asyncio.to_thread(in_a_thread_or_raise, "question")
        assert current() is recorder
        assert (await world.records(recorder)).calls == ()


def in_a_thread_or_raise(question: str) -> str:
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(ask(question))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work).start()
    return future.result(20)


async def test_a_client_with_the_rollouts_address_and_key_needs_no_context(world: World, routed: None) -> None:
    worker = ThreadPoolExecutor(1)
    worker.submit(int).result()
    async with world.rollout() as recorder:
        llm = recorder.llm
        own = OpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)

        def call() -> Any:
            return own.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "question"}])

        await asyncio.to_thread(Context().run, call)
        assert len((await world.records(recorder)).calls) == 1
    worker.shutdown()


async def test_without_a_gateway_a_call_outside_is_left_alone(routed: None) -> None:
    async with agl.rollout("task", store=open_store("memory:")):
        with pytest.raises(Exception, match="Connection error"):
            await asyncio.to_thread(Context().run, ask, "question")


async def test_attaching_an_ended_rollout_or_another_value_is_an_error(world: World) -> None:
    async with world.rollout() as recorder:
        wrong: Any = recorder.attempt.id
        with pytest.raises(LightningError, match=r"agl\.current\(\)"), agl.attach(wrong):
            pass
    with pytest.raises(LightningError, match="has ended"), agl.attach(recorder):
        pass


async def test_a_reward_in_a_thread_belongs_to_the_rollout(world: World) -> None:
    async with world.rollout() as recorder:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.wrap_future(pool.submit(agl.reward, 0.5))
    assert [reward.value for reward in recorder.rewards] == [0.5]
