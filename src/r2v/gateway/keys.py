"""Keys of clients: whose they are, what they may do, and what they may spend. Only their hashes are kept.

Keys stand in the environment (`server.key_env`), each a tenant of its own, or are made while the gateway runs (`r2v keys`).
A tenant sees its own sessions and no others.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, Protocol, get_args

import msgspec

from r2v.core.errors import SettingsError
from r2v.gateway.settings import LimitSettings, ServerSettings
from r2v.runtime.settings import variable

Scope = Literal["agent", "outcomes", "admin"]
"""agent: steps, and reading what became of its own. outcomes: reporting how its sessions ended. admin: everything of
everybody: the page, modes, the kill switch.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)
SCHEMA = ("CREATE TABLE keys (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",)
UNLIMITED = LimitSettings()
FRESH_S = 1.0
"""A key that was made or revoked is known everywhere after so long."""
NAME = re.compile(r"(?![0-9a-f]{12}$|open$)[a-z][\w.-]{0,62}")
"""Of keys and owners: never one that a key of the environment could have."""


@dataclass(frozen=True)
class Key:
    """Who asks."""

    id: str
    """What the ledger and the budgets call it."""
    tenant: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ("*",)
    """Names of models that it may ask for, with * for any part."""
    overrides: bool = True
    """Whether it may choose the model or the threshold itself (`r2v:teacher`, `r2v@tau=0.3`, `x-r2v-arm`)."""
    budget: LimitSettings = UNLIMITED
    """Of a day, beside `budget.key_per_day`."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def may_ask(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


OPEN = Key("open", "open", frozenset(SCOPES))
"""Anybody, where no key is required."""


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key as it is kept."""

    name: str
    owner: str
    digest: str
    """SHA-256 of the key, in hexadecimal digits."""
    scopes: tuple[Scope, ...]
    models: tuple[str, ...]
    overrides: bool
    budget: LimitSettings
    created: float
    previous: str = ""
    """Digest of the key before it was rotated."""
    previous_until: float = 0.0

    def made(self) -> Key:
        return Key(self.name, self.owner, frozenset(self.scopes), self.models, self.overrides, self.budget)


class KeyStore(Protocol):
    """Where made keys are kept. Methods raise sqlite3.Error or OSError."""

    def empty(self) -> bool:
        """Whether it is known to hold no key."""

    async def all(self) -> list[StoredKey]: ...

    async def put(self, key: StoredKey) -> None: ...

    async def remove(self, name: str) -> bool:
        """Whether there was one."""


class LedgerKeys:
    """`KeyStore` in the ledger."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def empty(self) -> bool:
        return self._db.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is None

    async def all(self) -> list[StoredKey]:
        rows = self._db.execute("SELECT content FROM keys ORDER BY name").fetchall()
        return [msgspec.json.decode(content, type=StoredKey) for (content,) in rows]

    async def put(self, key: StoredKey) -> None:
        self._db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (key.name, msgspec.json.encode(key)))

    async def remove(self, name: str) -> bool:
        return self._db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount > 0


class KeyRing:
    """All keys that a gateway takes."""

    def __init__(self, server: ServerSettings, store: KeyStore) -> None:
        """Raises SettingsError when keys are required and there is none."""
        self._required, self._store = server.require_key, store
        self._fixed = _of_environment(server)
        self._made: Mapping[str, tuple[Key, float]] = {}
        """Digest -> (key, until when it is valid)."""
        self._read = -FRESH_S
        if self._required and not self._fixed and store.empty():
            raise SettingsError(
                f"set {variable('server.key_env', server.key_env)} to the key clients must send, or `r2v keys create NAME`, "
                "or server.require_key: false"
            )

    async def find(self, given: str) -> Key | None:
        """Whose key this is; None for nobody's. Raises OSError or sqlite3.Error where made keys cannot be read."""
        digest = _digest(given)
        if (key := self._fixed.get(digest)) is not None:
            return key
        if time.monotonic() - self._read > FRESH_S:
            self._made = _valid(await self._store.all())
            self._read = time.monotonic()
        key, until = self._made.get(digest, (None, 0.0))
        if key is not None and time.time() < until:
            return key
        return None if self._required else OPEN


def made_key(
    name: str, owner: str, scopes: Sequence[str], models: Sequence[str], overrides: bool, budget: LimitSettings
) -> tuple[str, StoredKey]:
    """A new key and what is kept of it. Raises SettingsError for a name or a scope that cannot be."""
    for what, value in (("name", name), ("owner", owner)):
        if not NAME.fullmatch(value):
            raise SettingsError(f"the {what} {value!r} of a key must be a small letter, then letters, digits or . _ -")
    if unknown := set(scopes) - set(SCOPES):
        raise SettingsError(f"no scope is called {unknown.pop()}; there are {', '.join(SCOPES)}")
    if budget.usd is not None and not math.isfinite(budget.usd):
        raise SettingsError(f"a key cannot have {budget.usd} USD a day; leave the limit out, or write a number")
    key = _fresh()
    wanted: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in scopes)
    return key, StoredKey(name, owner, _digest(key), wanted, tuple(models), overrides, budget, time.time())


def rotated(stored: StoredKey, grace_s: float) -> tuple[str, StoredKey]:
    """A new key in the place of one that stays valid for a while, and what is kept of it."""
    key = _fresh()
    until = time.time() + grace_s
    return key, msgspec.structs.replace(stored, digest=_digest(key), previous=stored.digest, previous_until=until)


def _fresh() -> str:
    return "r2v-" + secrets.token_urlsafe(32)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _valid(stored: Sequence[StoredKey]) -> dict[str, tuple[Key, float]]:
    found = {one.previous: (one.made(), one.previous_until) for one in stored if one.previous}
    return found | {one.digest: (one.made(), float("inf")) for one in stored}


def _of_environment(server: ServerSettings) -> dict[str, Key]:
    """Digest -> key. A key that is alone may do everything; of several none may what concerns the others, for which there is
    the admin's key.
    """

    def named(variable: str) -> list[str]:
        return [_digest(key.strip()) for key in os.environ.get(variable, "").split(",") if key.strip()]

    agents, admins = named(server.key_env), named(server.admin_key_env)
    own: tuple[Scope, ...] = SCOPES if len(agents) == 1 and not admins else ("agent", "outcomes")
    found = {digest: Key(digest[:12], digest[:12], frozenset(own)) for digest in agents}
    return found | {digest: Key(digest[:12], digest[:12], frozenset(SCOPES)) for digest in admins}
