"""The wire form of an address, and the gateway's address for it."""

from __future__ import annotations

import pytest

from agentlightning.capture.forms import form_of
from agentlightning.capture.routing import ClientRequest, Rejected, ToGateway, Unchanged, destination, destination_outside
from agentlightning.types import LLM

HOME = LLM("ours", "http://127.0.0.1:80/v1", "key")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://api.openai.com/v1/chat/completions", "/chat/completions"),
        ("https://api.openai.com/v1/responses", "/responses"),
        ("https://api.openai.com/v1/completions", "/completions"),
        ("https://api.anthropic.com/v1/messages?beta=true", "/messages?beta=true"),
        ("https://api.anthropic.com/v1/messages/count_tokens", "/messages/count_tokens"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "/chat/completions"),
        ("https://api.mistral.ai/v1/chat/completions", "/chat/completions"),
        ("https://api.groq.com/openai/v1/chat/completions", "/chat/completions"),
        ("https://api.together.xyz/v1/chat/completions", "/chat/completions"),
        ("https://api.fireworks.ai/inference/v1/chat/completions", "/chat/completions"),
        ("https://api.deepseek.com/chat/completions", "/chat/completions"),
        ("https://api.deepseek.com/anthropic/v1/messages", "/messages"),
        ("https://openrouter.ai/api/v1/chat/completions", "/chat/completions"),
        ("https://api.x.ai/v1/chat/completions", "/chat/completions"),
        ("https://api.cohere.ai/compatibility/v1/chat/completions", "/chat/completions"),
        ("https://us.openai.azure.com/openai/deployments/famous/chat/completions?api-version=1", "/chat/completions?api-version=1"),
        ("https://us.services.ai.azure.com/models/chat/completions", "/chat/completions"),
        ("http://localhost:11434/v1/chat/completions", "/chat/completions"),
    ],
)
def test_the_request_of_every_provider_has_its_place_at_the_gateway(url: str, path: str) -> None:
    form = form_of(url)
    assert form is not None
    assert form.foreign is None
    request = ClientRequest(url, form.base_url, form.model or "famous")
    assert destination(request, HOME, ["famous"]) == ToGateway(HOME.base_url + path)
    assert isinstance(destination(request, HOME, ["other"]), Unchanged)


@pytest.mark.parametrize(
    ("url", "name", "model"),
    [
        ("https://generativelanguage.googleapis.com/v1beta/models/famous:generateContent", "Gemini's", "famous"),
        ("https://generativelanguage.googleapis.com/v1beta/models/famous:streamGenerateContent?alt=sse", "Gemini's", "famous"),
        ("https://us-aiplatform.googleapis.com/v1/projects/p/publishers/google/models/famous:generateContent", "Gemini's", "famous"),
        ("https://us-aiplatform.googleapis.com/v1/publishers/anthropic/models/famous@2025:rawPredict", "Vertex AI's", "famous"),
        ("https://bedrock-runtime.us-east-1.amazonaws.com/model/famous%3A0/converse-stream", "Amazon Bedrock's", "famous:0"),
        ("https://bedrock-runtime.us-east-1.amazonaws.com/model/famous/invoke-with-response-stream", "Amazon Bedrock's", "famous"),
        ("http://localhost:11434/api/chat", "Ollama's", None),
        ("http://localhost:11434/api/generate", "Ollama's", None),
        ("https://api.cohere.com/v2/chat", "Cohere's", None),
        ("https://api.mistral.ai/v1/fim/completions", "Mistral's", None),
    ],
)
def test_a_form_that_the_gateway_does_not_speak_is_rejected_for_a_routed_model_alone(url: str, name: str, model: str | None) -> None:
    form = form_of(url)
    assert form is not None
    assert form.foreign is not None
    assert form.foreign.name.startswith(name)
    assert form.model == model
    request = ClientRequest(url, form.base_url, model or "famous", foreign=form.foreign)
    target = destination(request, HOME, ["famous*"])
    assert isinstance(target, Rejected)
    assert target.reason.startswith(form.foreign.name)
    assert isinstance(destination(request, HOME, ["other"]), Unchanged)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1/embeddings",
        "https://api.openai.com/v1/responses/resp_1/cancel",
        "https://api.cohere.com/v2/embed",
        "https://example.com/v2/chat",
        "https://generativelanguage.googleapis.com/v1beta/models/famous:embedContent",
        "https://example.com/",
    ],
)
def test_another_address_takes_no_model_requests(url: str) -> None:
    assert form_of(url) is None


CHAT = "https://api.vendor.com/v1/chat/completions"


@pytest.mark.parametrize(
    ("request_", "rollouts", "rejected"),
    [
        pytest.param(ClientRequest(CHAT, "", "famous"), [HOME], True, id="a name that stands for the model"),
        pytest.param(ClientRequest(CHAT, "", "ours"), [HOME], True, id="the model of an open rollout"),
        pytest.param(ClientRequest(CHAT, "", "x", of_rollout=True), [HOME], True, id="a client of rollouts"),
        pytest.param(ClientRequest("/files", CHAT, None, of_rollout=True), [HOME], False, id="no model"),
        pytest.param(ClientRequest(CHAT, "", "judge"), [HOME], False, id="another model"),
        pytest.param(ClientRequest(CHAT, "", "famous"), [], False, id="no open rollout"),
        pytest.param(ClientRequest(CHAT, "", "famous"), [LLM("ours", "", "")], False, id="a rollout without a gateway"),
        pytest.param(ClientRequest("/chat/completions", HOME.base_url, "ours"), [HOME], False, id="the gateway's own address"),
        pytest.param(
            ClientRequest("/chat/completions", HOME.base_url, "ours"), [LLM("ours", "http://a/v1", "k"), HOME], False, id="one of two"
        ),
    ],
)
def test_outside_every_rollout_a_request_must_not_take_its_model_elsewhere(
    request_: ClientRequest, rollouts: list[LLM], rejected: bool
) -> None:
    assert isinstance(destination_outside(request_, rollouts, ["famous"]), Rejected) == rejected
