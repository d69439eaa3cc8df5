"""The PostgreSQL store keeps the contract, and says what is wrong with an address or a database."""

from __future__ import annotations

from agentlightning.testing.store import StoreContract


class TestPostgresStore(StoreContract):
    pass
