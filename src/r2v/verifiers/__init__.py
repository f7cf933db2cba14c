"""Verifiers score candidates on local evidence. Risk is fitted on those scores, so a router's folder names its verifier."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from r2v.core.protocols import Verifier

VerifierName = Literal["tool_calls", "household", "code", "terminal"]


def verifier_named(name: VerifierName, tools: Sequence[Mapping[str, Any]] = ()) -> Verifier:
    """`tools`: OpenAI function definitions, for `tool_calls`, which is for agents that we know nothing about."""
    if name == "household":
        from r2v.domains.household.verifier import HouseholdVerifier

        return HouseholdVerifier()
    if name == "code":
        from r2v.domains.humaneval.verifier import CodeVerifier

        return CodeVerifier()
    if name == "terminal":
        from r2v.domains.terminal.verifier import TerminalVerifier

        return TerminalVerifier()
    from r2v.verifiers.tool_calls import ToolCallVerifier

    return ToolCallVerifier(tools)


def source_sha256(name: str) -> str:
    """Hash of the source of the named verifier: a router's risk was fitted on its scores."""
    source = inspect.getsource(sys.modules[type(verifier_named(name)).__module__])
    return hashlib.sha256(source.encode()).hexdigest()
