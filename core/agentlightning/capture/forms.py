"""The wire forms of model requests, by their addresses. Pure.

`FORMS` are the forms of the gateway. Providers serve them below addresses of their own, so the end of the path tells the form.
`FOREIGN_FORMS` are forms that the gateway does not speak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit

FORMS = {
    "/chat/completions": "messages",
    "/responses": "input",
    "/messages": "messages",
    "/messages/count_tokens": "messages",
    "/completions": "prompt",
}
"""The end of the path of each form that the gateway speaks, and a field that every body of this form has."""
DEPLOYED = re.compile(r"/deployments/([^/]+)/")
"""The model in the addresses of Azure."""
FORM = re.compile(f"(?P<base>.*?)(?P<form>{'|'.join(FORMS)})/?")


@dataclass(frozen=True, slots=True)
class ForeignForm:
    """A wire form that the gateway does not speak."""

    name: str
    path: re.Pattern[str]
    """Of its requests; the group `model` is the model, if the body does not name it."""
    instead: str
    """What to use, as a sentence without its full stop."""
    hosts: tuple[str, ...] = ("*",)
    """Patterns."""


FOREIGN_FORMS = (
    ForeignForm(
        "Gemini's generateContent",
        re.compile(r"/models/(?P<model>[^/:]+):(?:stream)?[gG]enerateContent$"),
        "Use an OpenAI client with Google's base URL https://generativelanguage.googleapis.com/v1beta/openai/",
    ),
    ForeignForm(
        "Vertex AI's rawPredict",
        re.compile(r"/models/(?P<model>[^/:@]+)(?:@[^/:]+)?:(?:stream)?[rR]awPredict$"),
        "Use Anthropic's own client",
    ),
    ForeignForm(
        "Amazon Bedrock's API",
        re.compile(r"/model/(?P<model>[^/]+)/(?:invoke|converse)(?:-stream|-with-response-stream)?$"),
        "Use an OpenAI or Anthropic client",
    ),
    ForeignForm(
        "Ollama's own API", re.compile(r"/api/(?:chat|generate)$"), "Use an OpenAI client with Ollama's base URL, which ends in /v1"
    ),
    ForeignForm(
        "Cohere's own API",
        re.compile(r"/v[12]/chat$"),
        "Use an OpenAI client with Cohere's base URL https://api.cohere.ai/compatibility/v1",
        hosts=("api.cohere.*", "*.cohere.com"),
    ),
    ForeignForm(
        "Mistral's fill-in-the-middle or agents API",
        re.compile(r"/(?:fim/completions|agents/completions|conversations)$"),
        "Use Mistral's chat completions",
        hosts=("*.mistral.ai",),
    ),
)


@dataclass(frozen=True, slots=True)
class FormOfAddress:
    """The wire form of an HTTP request, by its address."""

    base_url: str
    """The address of the provider's API, above the form's path."""
    model: str | None
    """In the path."""
    field: str | None
    """In every body of the form; None: unknown."""
    foreign: ForeignForm | None
    """None: the gateway speaks it."""


def form_of(url: str) -> FormOfAddress | None:
    """The wire form of an address. None: it takes no model requests, or requests of an unknown form."""
    target = urlsplit(url)
    for form in FOREIGN_FORMS:
        match = form.path.search(target.path)
        if match is not None and any(fnmatchcase(target.hostname or "", host) for host in form.hosts):
            model = match.groupdict().get("model")
            return FormOfAddress("", model and unquote(model), None, form)
    match = FORM.fullmatch(target.path)
    if match is None:
        return None
    deployed = DEPLOYED.search(target.path)
    base = target._replace(path=match["base"], query="", fragment="").geturl()
    return FormOfAddress(base, deployed and unquote(deployed[1]), FORMS[match["form"]], None)
