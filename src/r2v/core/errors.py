"""Errors a user can act on. Each message is one line: what is wrong, where, and the mend.

    R2VError
    |- SettingsError      a settings file or option is wrong
    |- StageError         a stage cannot run (an input is missing, another run holds the folder, the disk is full)
    `- ArtifactError      a file to be read is missing, corrupt or of another version

Plug-ins (policies, verifiers, environments) raise plain Python errors; `boundary` names the one that broke, and
the loop records it as a `Failure` on the episode, so that its siblings go on.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class R2VError(Exception):
    """Base of all errors r2v raises on purpose."""


class SettingsError(R2VError):
    """A settings file or command-line option is wrong."""


class StageError(R2VError):
    """A stage cannot run or cannot finish."""


def broke(name: str, error: Exception) -> str:
    """One line on a plug-in that raised what it should not: what, and where in its code."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{name} broke: {type(error).__name__}: {error} ({at.filename}:{at.lineno})"


class ArtifactError(R2VError):
    """A stored file is missing, corrupt, or of another version."""


class BoundaryError(R2VError):
    """Something plugged in raised; `boundary` names it."""

    def __init__(self, boundary: str, cause: Exception) -> None:
        super().__init__(f"{boundary}: {type(cause).__name__}: {cause}")
        self.boundary = boundary
        self.cause = cause


class NotRecorded(LookupError):
    """A replay needs what was not recorded; raised by a plug-in, so that the loop records it as a `Failure`."""


class ModelError(RuntimeError):
    """A model did not answer. `status` is what the gateway's client should see: that of a bad request, else 502."""

    def __init__(
        self,
        reason: str,
        *,
        status: int = 502,
        clients_fault: bool = False,
        retry_after: float | None = None,
        paid: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status, self.retry_after = status, retry_after
        self.paid = paid
        """Whether answers may have to be paid all the same, beside those of which `on_lost` knows."""
        self.clients_fault = clients_fault
        """The request itself was refused (HTTP 4xx): another model is likely to refuse it, too."""


class PromptTooLong(ModelError):
    """The request does not fit the model's context; another model may have room for it."""

    def __init__(self, reason: str, counts: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.counts = counts
        """(tokens of the request, tokens that the model takes); empty where nobody said so."""


@contextmanager
def boundary(name: str) -> Iterator[None]:
    """Classify whatever escapes the block as a failure of `name` (e.g. "verifier")."""
    try:
        yield
    except R2VError:
        raise
    except Exception as error:
        raise BoundaryError(name, error) from error
