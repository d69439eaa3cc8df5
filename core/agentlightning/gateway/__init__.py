"""The OpenAI-compatible front of an engine: whose call it is, render, generate, record, reply. Every request is counted."""

from agentlightning.gateway.server import Gateway, gateway_app

__all__ = ["Gateway", "gateway_app"]
