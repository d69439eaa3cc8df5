"""`POST /v1/reward`: a reward from another program. An attempt's key is all that it needs."""

from __future__ import annotations

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.capture.recorder import checked_reward
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import RewardError, StoreError
from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.body import FAULTS, MAX_BODY, read_body
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import UNKNOWN, check_open, find_attempt
from agentlightning.types import Reward

log = logging.getLogger(__name__)
PATH = "/v1/reward"
EXPECTED = 'Send a number, or {"reward": number} with a "name" for one of several rewards.'


class Posted(msgspec.Struct, forbid_unknown_fields=True):
    reward: float
    name: str = "reward"


class RewardEndpoint:
    """Records a reward for the attempt whose key comes with it. It answers when the store has the reward."""

    def __init__(self, store: LightningStore, max_body: int = MAX_BODY) -> None:
        self._store, self._max_body = store, max_body

    async def answer(self, request: Request) -> Response:
        try:
            attempt_id = await self._attempt(request)
            body = await read_body(request.receive, request.headers, self._max_body)
            reward = _parse(attempt_id, body or b"")
            await self._store.record([reward])
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        except StoreError as error:
            log.error("The store did not take a posted reward: %s", error)
            return json_response(Refused(f"The store did not take the reward: {error}. Send it again.").body, 503)
        return json_response({"id": reward.id, "reward": reward.value, "name": reward.name})

    async def _attempt(self, request: Request) -> str:
        """The attempt of a key. Raises `Refused` unless it is running."""
        owner = await find_attempt(self._store, request.headers)
        if owner is None:
            raise Refused(UNKNOWN, status=401, code="invalid_api_key")
        check_open(owner[1])
        return owner[1].id


def _parse(attempt_id: str, body: bytes) -> Reward:
    try:
        decoded: float | Posted = msgspec.json.decode(body, type=float | Posted)
        posted = decoded if isinstance(decoded, Posted) else Posted(decoded)
        return Reward(attempt_id=attempt_id, value=checked_reward(posted.reward), name=posted.name)
    except (*FAULTS, RewardError) as error:
        raise Refused(f"{body[:80].decode(errors='replace')!r} is no reward: {error}. {EXPECTED}", param="reward") from error
