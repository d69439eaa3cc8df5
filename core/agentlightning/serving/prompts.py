"""The prompts of a run, for the agents of `agl serve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentlightning.config.models import run_result
from agentlightning.config.prompts import prompt_texts, run_prompts
from agentlightning.config.schema import Config
from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.auth import find_attempt
from agentlightning.runner.served_prompts import PATH
from agentlightning.stores.http_server import StoreServer


def served_prompts(run: Path, config: Config) -> dict[str, str]:
    """Return the prompts of a run by name: the best ones of its search, or those that its weights were trained with."""
    return run_prompts(run) if "prompts" in run_result(run) else prompt_texts(config.prompts)


def prompts_route(prompts: Mapping[str, str], store: LightningStore, server: StoreServer) -> Route:
    """The route that tells the prompts to holders of the token, or of an attempt's key."""

    async def answer(request: Request) -> Response:
        if not server.admits(request) and await find_attempt(store, request.headers) is None:
            return Response(status_code=401)
        return JSONResponse(dict(prompts))

    return Route(f"/v1{PATH}", answer, methods=["GET"])
