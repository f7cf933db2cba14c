"""Where the shared ledger is: URLs of Postgres, which hold no password in any file or command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from r2v.core.errors import SettingsError
from r2v.runtime.settings import from_environment

EXAMPLE = "postgresql://USER@HOST/DATABASE"
SECRETS = ("password", "sslpassword")


class _Store(Protocol):
    @property
    def url(self) -> str | None: ...

    @property
    def url_env(self) -> str | None: ...


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql:/", "postgres:/"))


def problem_of(url: str, *, secret: bool = False) -> str | None:
    """What is wrong with the URL of a shared ledger, without repeating it; None where nothing is.

    Args:
        url: it names a host and a database.
        secret: it may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"is no URL; write {EXAMPLE}"
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("postgresql", "postgres") or not host or len(parts.path) < 2 or "@" in user:
        return f"must name a host and a database, special characters as %40: {EXAMPLE}"
    if not secret and (":" in user or any(name in parse_qs(parts.query, keep_blank_values=True) for name in SECRETS)):
        return (
            "holds a password, which belongs into $PGPASSWORD, ~/.pgpass or, with the whole URL, into the environment "
            "variable that store.url_env names"
        )
    return None


def shown(url: str) -> str:
    """The URL without what may be secret in it."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.split(':')[0]}{at}{host}{parts.path}"


def shared_url(store: _Store, environment: Mapping[str, str]) -> str | None:
    """URL of the shared ledger; None where there is none. Raises SettingsError."""
    if store.url_env is None:
        return store.url
    url = from_environment("store.url_env", store.url_env, EXAMPLE, environment)
    if problem := problem_of(url, secret=True):
        raise SettingsError(f"environment variable {store.url_env} of store.url_env {problem}")
    return url
