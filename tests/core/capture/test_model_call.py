"""The recorded call behind the answer of a model call."""

from __future__ import annotations

from weakref import ref

import pytest

from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.recorder import Recorder
from agentlightning.stores.common import open_store
from agentlightning.types import LLM, Rollout, Task, new_id


@pytest.fixture
async def recorder() -> Recorder:
    store, rollout = open_store("memory:"), Rollout(task=Task("0", 0), mode="train", max_attempts=1)
    attempt = await store.begin(rollout, "test", lease=60)
    return Recorder(store, rollout, attempt, LLM("ours", "http://127.0.0.1:80/v1", attempt.key))


@pytest.mark.parametrize("form", ["{}", "chatcmpl-{}", "cmpl-{}", "msg_{}", "resp_{}"])
async def test_the_id_of_an_answer_names_its_call_in_every_form(recorder: Recorder, form: str) -> None:
    call = ModelCall("adapter", ref(recorder))
    first, second = call.next_request("first"), call.next_request("second")
    assert first != second
    assert call.end(form.format(first)) == (first, None)


@pytest.mark.parametrize(
    "told",
    ["fp_44709d6fcb", "chatcmpl-B8xJ2", "msg_01XFDUDYJgAACzvnptvVoYEL", "run_01a222b4d441703fa7e8e05c40e56ea2", 5, None],
)
async def test_the_id_of_another_vendor_names_no_call(recorder: Recorder, told: object) -> None:
    call = ModelCall("adapter", ref(recorder))
    call.next_request("first")
    call.next_request("second")
    call_id, cause = call.end(told)
    assert call_id is None
    assert cause is not None
    assert "does not name its request" in cause


async def test_an_id_in_our_form_from_another_address_names_no_call(recorder: Recorder) -> None:
    call = ModelCall("adapter", ref(recorder), elsewhere="another address")
    assert call.end(f"chatcmpl-{new_id()}") == (None, "another address")


async def test_an_answer_of_a_client_that_nobody_saw_names_its_call(recorder: Recorder) -> None:
    answer = new_id()
    assert ModelCall("adapter", ref(recorder)).end(f"msg_{answer}") == (answer, None)
    again, cause = ModelCall("adapter", ref(recorder)).end(answer)
    assert again is None
    assert cause is not None
    assert cause.startswith("a cache")
