"""Domains: what agents do. Each is one object in one folder, which no other domain imports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2v.core.errors import SettingsError
from r2v.runtime import plugins

if TYPE_CHECKING:
    from r2v.domains.base import Domain

BUILT_IN = {
    "agentdojo": "r2v.domains.agentdojo:DOMAIN",
    "household": "r2v.domains.household:DOMAIN",
    "humaneval": "r2v.domains.humaneval:DOMAIN",
    "terminal": "r2v.domains.terminal:DOMAIN",
}


def load_domain(kind: str) -> Domain[Any]:
    """The domain of that name, entry point or dotted path. Raises SettingsError."""
    from r2v.domains.base import Domain

    found = plugins.load("domains", kind, BUILT_IN)
    if not isinstance(found, Domain):
        raise SettingsError(f"{kind} is not a domain: it must be an object of a class derived from r2v.domains.base.Domain")
    return found
