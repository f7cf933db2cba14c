"""Verifiers score candidates on local evidence. Risk is fitted on those scores, so a router's folder names its verifier."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from r2v.core.errors import SettingsError
from r2v.core.protocols import Verifier
from r2v.runtime import plugins

BUILT_IN = {
    "tool_calls": "r2v.verifiers.tool_calls:ToolCallVerifier",
    "household": "r2v.domains.household.verifier:HouseholdVerifier",
    "code": "r2v.domains.humaneval.verifier:CodeVerifier",
    "terminal": "r2v.domains.terminal.verifier:TerminalVerifier",
}
"""`tool_calls` is for agents that we know nothing about; the others are those of the domains."""


def verifier_named(name: str, tools: Sequence[Mapping[str, Any]] = ()) -> Verifier:
    """The verifier of that name, entry point or dotted path: an object, or a class of which one is made.

    Args:
        name: e.g. `tool_calls`, or `my_package.my_module:MyVerifier`.
        tools: OpenAI function definitions of the request, for a class whose constructor has the parameter `tools`.

    Raises:
        SettingsError: there is no such verifier.
    """
    found: Any = plugins.load("verifiers", name, BUILT_IN)
    if not hasattr(found, "score"):
        raise SettingsError(f"{name} is not a verifier: it has no method `score`")
    if isinstance(found, type):
        found = found(tools=tools) if "tools" in inspect.signature(found).parameters else found()
    verifier: Verifier = found
    return verifier


def source_sha256(name: str) -> str:
    """Hash of the source of the named verifier: a router's risk was fitted on its scores."""
    source = inspect.getsource(sys.modules[type(verifier_named(name)).__module__])
    return hashlib.sha256(source.encode()).hexdigest()
