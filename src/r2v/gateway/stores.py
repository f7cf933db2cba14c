"""Where a gateway keeps what its processes and replicas share: its own ledger, Redis, Postgres."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from r2v.core.errors import R2VError, SettingsError
from r2v.gateway.budgets import Budgets, LocalBudgets
from r2v.gateway.keys import KeyStore
from r2v.gateway.ledger import Ledger
from r2v.gateway.postgres_url import shared_url
from r2v.gateway.reading import LedgerReader
from r2v.gateway.sessions import LocalSessions, Sessions
from r2v.gateway.settings import GatewaySettings, StoreSettings
from r2v.runtime.settings import from_environment

if TYPE_CHECKING:
    from r2v.gateway.redis_connection import Connection
    from r2v.gateway.shipping import Shipping


def redis_of(store: StoreSettings) -> Connection | None:
    """The Redis that replicas share; None where the settings name none. Raises SettingsError."""
    if (name := store.redis_env) is None:
        return None
    url = from_environment("store.redis_env", name, "the URL of a Redis")
    try:
        from r2v.gateway.redis_connection import Connection
    except ModuleNotFoundError:
        raise SettingsError("store.redis_env needs the extra redis: pip install 'r2v[redis]'") from None
    try:
        return Connection(url, replicas=store.redis_replicas)
    except ValueError as error:
        raise SettingsError(f"environment variable {name} of store.redis_env holds no URL of a Redis ({error})") from None


def shared_state(settings: GatewaySettings, ledger: Ledger) -> tuple[Sessions, Budgets, KeyStore]:
    """What the processes of a gateway share: in its ledger, or in the Redis of all replicas. Raises SettingsError."""
    ttl_s = settings.route.cache_ttl_s
    if (connection := redis_of(settings.store)) is None:
        return LocalSessions(ledger, ttl_s), LocalBudgets(ledger.accounts), ledger.keys
    from r2v.gateway.redis_state import RedisBudgets, RedisKeys, RedisSessions

    budgets = RedisBudgets(connection, ledger.accounts, ledger.identity)
    return RedisSessions(connection, ttl_s), budgets, RedisKeys(connection)


def shipping_of(store: StoreSettings) -> Shipping | None:
    """What ships the ledger to the one that replicas share; None where the settings name none. Raises SettingsError."""
    if (url := shared_url(store, os.environ)) is None:
        return None
    try:
        from r2v.gateway.shared_ledger import SharedLedger
        from r2v.gateway.shipping import Shipping
    except ModuleNotFoundError:
        raise SettingsError("store.url needs the extra postgres: pip install 'r2v[postgres]'") from None
    return Shipping(store, SharedLedger(url))


class Stores:
    """Where a gateway keeps what outlives a reload of its settings."""

    def __init__(self, settings: GatewaySettings, *, owner: bool = False) -> None:
        """Opens them; `owner` as `Ledger` has it. Raises SettingsError, ArtifactError."""
        self.ledger = Ledger(Path(settings.store.path), owner=owner)
        try:
            self.sessions, self.budgets, self.keys = shared_state(settings, self.ledger)
            self.shipping = shipping_of(settings.store)
        except R2VError:
            self.ledger.close()
            raise

    def join(self) -> None:
        """Take part as a replica, where the ledger is shared; who is refused closes its ledger. Raises R2VError."""
        try:
            if self.shipping is not None:
                self.shipping.join(self.ledger)
        except R2VError:
            self.ledger.close()
            raise

    @property
    def reader(self) -> LedgerReader:
        """The ledger that knows of all replicas."""
        return self.ledger if self.shipping is None else self.shipping.shared

    async def close(self) -> None:
        await self.sessions.close()
        await self.budgets.close()
        if self.shipping is not None:
            self.shipping.close()
        self.ledger.close()
