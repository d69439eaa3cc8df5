"""The clients whose requests go to the gateway of the current rollout, for all adapters of this process.

The first adapter applies the patch of each library, and the last one removes it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from threading import Lock

from agentlightning.capture.http_patch import HTTP_PATCHES
from agentlightning.capture.openai_patch import OpenAIPatch, Unclaimed


class Clients:
    """The adapters that route requests, with the names of their models."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: dict[str, frozenset[str]] = {}
        self._unclaimed: dict[str, Unclaimed] = {}
        self._patches = (OpenAIPatch(self.models, self.unclaimed), *(patch(self.models) for patch in HTTP_PATCHES))

    def install(self, adapter: str, models: Collection[str] = (), *, unclaimed: Unclaimed | None = None) -> None:
        """Route requests for this adapter. Idempotent: `models` add to its earlier ones.

        Requests for the rollout's model, or to its gateway, go to that gateway. `models` are further names, or patterns, for that model.
        Requests for other models stay as they are, without the rollout's key.
        """
        with self._lock:
            self._models[adapter] = self._models.get(adapter, frozenset()) | ({models} if isinstance(models, str) else set(models))
            if unclaimed is not None:
                self._unclaimed[adapter] = unclaimed
            for patch in self._patches:
                patch.apply()

    def uninstall(self, adapter: str) -> None:
        """Undo `install` of this adapter."""
        with self._lock:
            self._models.pop(adapter, None)
            self._unclaimed.pop(adapter, None)
            for patch in self._patches if not self._models else ():
                patch.remove()

    def adapters(self) -> list[str]:
        """Import names of the adapters that route requests."""
        return list(self._models)

    def models(self) -> list[str]:
        """Names and patterns of all adapters that stand for the model of the rollout."""
        return [name for names in self._models.copy().values() for name in names]

    def unclaimed(self) -> list[Unclaimed]:
        """The functions to call with a request outside any model call of a framework."""
        return list(self._unclaimed.values())


@cache
def clients() -> Clients:
    """The clients of this process, one object for all adapters."""
    return Clients()
