"""Verifiers score candidates on local evidence. Risk is fitted on those scores, so a router's folder names its verifier.

verifier: tool_calls
verifier: {kind: learned, path: runs/verifier}
verifier: {kind: judge, model: {base_url: http://localhost:8000/v1, model: my-model, price: {input: 0.1, output: 0.4}}}

One with settings goes by its settings as JSON wherever r2v names it: in router folders, and where two names are compared.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from r2v.core.agent import sha256_of
from r2v.core.errors import SettingsError
from r2v.core.protocols import Verifier
from r2v.core.untrusted import parsed_json
from r2v.runtime import plugins
from r2v.runtime.settings import Settings, validated

BUILT_IN = {
    "tool_calls": "r2v.verifiers.tool_calls:ToolCallVerifier",
    "household": "r2v.domains.household.verifier:HouseholdVerifier",
    "code": "r2v.domains.humaneval.verifier:CodeVerifier",
    "terminal": "r2v.domains.terminal.verifier:TerminalVerifier",
    "agentdojo": "r2v.domains.agentdojo.verifier:AgentDojoVerifier",
    "judge": "r2v.verifiers.judge:JudgeVerifier",
    "learned": "r2v.verifiers.learned:LearnedVerifier",
}
"""`tool_calls` is for agents that we know nothing about, the next four are rules of domains, the last two are models."""


def name_of(verifier: object) -> object:
    """The name that stands for what a settings file says under `verifier`: a name, or `kind` and settings.

    Anything else is given back as it is, for the settings to refuse.
    """
    if not isinstance(verifier, Mapping):
        return verifier
    return json.dumps(verifier, ensure_ascii=False, sort_keys=True)


def verifier_named(name: str, tools: Sequence[Mapping[str, Any]] = ()) -> Verifier:
    """The verifier of that name, entry point or dotted path: an object, or a class of which one is made.

    Args:
        name: e.g. `tool_calls`, or `my_package.my_module:MyVerifier`; or settings as JSON, of which `kind` is the name.
        tools: OpenAI function definitions of the request, for a class whose constructor has the parameter `tools`.

    Raises:
        SettingsError: there is no such verifier, or its settings are wrong.
        ArtifactError: a file that it needs is missing or damaged.
    """
    kind, options = _parsed(name)
    found: Any = plugins.load("verifiers", kind, BUILT_IN)
    if not hasattr(found, "score"):
        raise SettingsError(f"{kind} is not a verifier: it has no method `score`")
    if isinstance(found, type) and issubclass(found, Settings):
        found = validated(found, options, "verifier")
    elif options:
        raise SettingsError(f"the verifier {kind} has no settings: write `verifier: {kind}`")
    elif isinstance(found, type):
        found = found(tools=tools) if "tools" in inspect.signature(found).parameters else found()
    verifier: Verifier = found
    return verifier


def _parsed(name: str) -> tuple[str, dict[str, Any]]:
    """(kind, settings). Raises SettingsError."""
    if not name.lstrip().startswith("{"):
        return name, {}
    try:
        options = parsed_json(name)
    except ValueError as error:
        raise SettingsError(f"`verifier` = {name[:80]}: it is not JSON ({error})") from None
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingsError(f"`verifier` = {name[:80]}: it needs `kind`, e.g. verifier: {{kind: learned, path: FOLDER}}")
    return kind, options


def source_sha256(name: str) -> str:
    """Hash of the source of the named verifier, and of what it was made from: a router's risk was fitted on its scores."""
    return sha256_of(verifier_named(name))
