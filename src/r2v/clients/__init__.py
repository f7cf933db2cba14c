"""Models as policies: over HTTP (`base`, a class a provider), in this process (`local`), recorded, scripted, mock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r2v.runtime import plugins

if TYPE_CHECKING:
    from r2v.clients.base import Client
    from r2v.clients.settings import ClientSettings

BUILT_IN = {
    "openai": "r2v.clients.openai:OpenAIClient",
    "openai_responses": "r2v.clients.responses:ResponsesClient",
    "anthropic": "r2v.clients.anthropic:AnthropicClient",
}
"""Providers: protocols that servers of models speak."""


def make_client(settings: ClientSettings, name: str) -> Client:
    """The client of `settings.provider`; `name` stands in its error messages.

    Raises:
        SettingsError: the provider is unknown, or the environment variable of the key is not set.
    """
    made: Client = plugins.load("clients", settings.provider, BUILT_IN)(settings, name)
    return made
