"""The destination of a request of the `openai` library."""

from __future__ import annotations

import pytest

from agentlightning.capture.routing import ClientRequest, Destination, ToGateway, Unchanged, destination
from agentlightning.types import LLM

HOME = LLM("ours", "http://127.0.0.1:80/v1", "key")
VENDOR = "https://api.vendor.com/v1/"
AZURE = "https://us.azure.com/openai/"
CHAT = ToGateway("http://127.0.0.1:80/v1/chat/completions")


@pytest.mark.parametrize(
    ("request_", "models", "expected"),
    [
        pytest.param(ClientRequest("/chat/completions", VENDOR, "ours"), [], CHAT, id="the model of the rollout, at any address"),
        pytest.param(ClientRequest("/chat/completions", VENDOR, "gpt-4"), ["gpt-*"], CHAT, id="a name that stands for the model"),
        pytest.param(ClientRequest("/chat/completions", HOME.base_url, "gpt-4"), [], CHAT, id="any model at the gateway's address"),
        pytest.param(
            ClientRequest("/chat/completions", "http://localhost/v1", None), [], CHAT, id="loopback and default port are the same"
        ),
        pytest.param(ClientRequest("/chat/completions", VENDOR, "gpt-4", of_rollout=True), [], CHAT, id="a client of the rollout"),
        pytest.param(
            ClientRequest(f"{VENDOR}chat/completions?a=1", VENDOR, "ours"), [], ToGateway(CHAT.url + "?a=1"), id="an address, not a path"
        ),
        pytest.param(ClientRequest(f"{HOME.base_url}/chat/completions", VENDOR, "x"), [], CHAT, id="the gateway's address in the request"),
        pytest.param(ClientRequest("/deployments/ours/chat/completions", AZURE, "ours"), [], CHAT, id="a deployment of Azure"),
        pytest.param(
            ClientRequest("/chat/completions", VENDOR, "gpt-4"), ["gpt-5*"], Unchanged("api.vendor.com", "gpt-4", True), id="another model"
        ),
        pytest.param(
            ClientRequest("https://judge.com/v1/x", HOME.base_url, "gpt-4"), [], Unchanged("judge.com", "gpt-4", True), id="another address"
        ),
        pytest.param(
            ClientRequest("/chat/completions", "http://127.0.0.1:81/v1", "x"), [], Unchanged("127.0.0.1:81", "x", True), id="another port"
        ),
        pytest.param(
            ClientRequest("/chat/completions", "http://127.0.0.1:80/v10", "x"), [], Unchanged("127.0.0.1:80", "x", True), id="another path"
        ),
        pytest.param(ClientRequest("/chat/completions", VENDOR, ["ours"]), [], Unchanged("api.vendor.com", ["ours"], True), id="no name"),
    ],
)
def test_the_destination_of_a_request_follows_from_its_values(request_: ClientRequest, models: list[str], expected: Destination) -> None:
    assert destination(request_, HOME, models) == expected


def test_a_rollout_without_a_gateway_leaves_its_own_model_unchanged() -> None:
    target = destination(ClientRequest("/chat/completions", VENDOR, "ours", of_rollout=True), LLM("ours", "", ""), ["ours"])
    assert target == Unchanged("api.vendor.com", "ours", has_gateway=False)
    assert isinstance(target, Unchanged)
    assert "AGL_GATEWAY" in target.reason("agentlightning_x")


def test_an_unchanged_request_names_the_setting_that_sends_it_to_the_gateway() -> None:
    reason = Unchanged("api.vendor.com", "gpt-4", has_gateway=True).reason("agentlightning_langchain")
    assert reason.startswith("another address: the request went to api.vendor.com")
    assert reason.endswith("agentlightning_langchain.install(models=['gpt-4'])")
