"""What a redacted ledger keeps of texts: hashes that tell equal texts from others, and tell nobody else anything.

They are keyed: without the key, which lies in a file of its own beside the ledger, no text can be guessed and compared.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import replace
from functools import cache
from pathlib import Path

from r2v.core.errors import SettingsError
from r2v.core.types import Action, Candidate, Step
from r2v.gateway.settings import StoreSettings
from r2v.runtime.settings import from_environment


class Redactor:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def hash(self, text: str) -> str:
        """Of 64 bits."""
        return "hmac:" + hmac.digest(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hex()[:16]

    def step(self, step: Step) -> Step:
        """The step with hashes in the place of texts; numbers stay."""

        @cache
        def hidden(action: Action) -> Action:
            return Action(self.hash(action.text))

        choice = step.choice
        return replace(
            step,
            observation=replace(step.observation, text=self.hash(step.observation.text)),
            choice=replace(
                choice,
                action=hidden(choice.action),
                candidates=tuple(Candidate(hidden(c.action), c.logp, c.entropy, c.usage) for c in choice.candidates),
                decision=choice.decision and replace(choice.decision, reason=choice.decision.code),
            ),
        )


def secret_of(store: StoreSettings) -> bytes:
    """The key of the hashes: of the environment, or of a file beside the ledger, made where there is none. Raises
    SettingsError.
    """
    if store.hash_key_env is not None:
        return from_environment("store.hash_key_env", store.hash_key_env, "the key of the hashes").encode()
    path = Path(store.path + ".secret")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        if not path.exists():
            made.touch(mode=0o600)
            made.write_bytes(secrets.token_bytes(32))
            try:
                os.link(made, path)  # whole or not at all, and never over another process's
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}, the key of the ledger's hashes, cannot be read or made ({error.strerror})") from None
