"""The hash of a conversation does not depend on what the gateway hashed before."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway.conversation import Conversations, History

ids, texts = st.sampled_from(["a", "b"]), st.sampled_from(["", "x", "y"])
calls = st.fixed_dictionaries(
    {"id": ids, "type": st.just("function"), "function": st.fixed_dictionaries({"name": texts, "arguments": texts.map(json.dumps)})}
)
messages = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": texts}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": texts}, optional={"tool_calls": st.lists(calls, max_size=2)}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": texts, "tool_call_id": ids}),
)
histories = st.lists(messages, min_size=1, max_size=5)


@given(requests=st.lists(st.lists(histories, min_size=1, max_size=2), min_size=1, max_size=4), grows=st.booleans())
def test_a_history_has_the_same_hashes_after_any_other_requests(requests: list[list[list[dict[str, Any]]]], grows: bool) -> None:
    conversations, before = Conversations(), list[dict[str, Any]]()
    for prompts in requests:
        if grows:
            before = [*before, *prompts[0]]
            prompts = [before]
        reply = {"role": "assistant", "content": "r"}
        read, alone = conversations.read("head", *prompts), History.of("head", *prompts)
        assert read == alone
        assert read.conversation(0, reply) == History.of("head", [*prompts[0], reply]).request_hash
