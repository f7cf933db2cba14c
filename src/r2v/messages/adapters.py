"""The protocols that clients may speak."""

from __future__ import annotations

from r2v.messages.anthropic import MESSAGES
from r2v.messages.openai_chat import CHAT
from r2v.messages.responses import RESPONSES

ADAPTERS = (CHAT, MESSAGES, RESPONSES)
