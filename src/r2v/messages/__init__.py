"""Conversations: the typed neutral form (`conversation`), the protocols that clients speak, a domain's chat format."""

BUILT_IN = {
    "chat": "r2v.messages.openai_chat:CHAT",
    "messages": "r2v.messages.anthropic:MESSAGES",
    "responses": "r2v.messages.responses:RESPONSES",
}
"""Protocols that the gateway serves: objects of `r2v.messages.protocol.ProtocolAdapter`."""
