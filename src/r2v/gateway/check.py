"""`r2v check`: would these settings serve?"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from r2v.clients import make_client
from r2v.clients.base import Client
from r2v.core.errors import ArtifactError, ModelError, R2VError
from r2v.gateway.ledger import Ledger
from r2v.gateway.routing import load_configured
from r2v.gateway.settings import GatewaySettings
from r2v.gateway.stores import redis_of, shipping_of
from r2v.gateway.telemetry import NO_OTEL
from r2v.routers.heuristic import ENTROPY
from r2v.runtime.settings import variable
from r2v.verdicts import parse_verdicts
from r2v.verifiers import source_sha256

if TYPE_CHECKING:
    from r2v.gateway.redis_connection import Connection


def problems(settings: GatewaySettings, show: Callable[[str], None]) -> list[str]:
    """What would not work, a line each; shows what does."""
    found = []
    if settings.server.require_key and not os.environ.get(settings.server.key_env):
        found.append(f"{variable('server.key_env', settings.server.key_env)} is not set: it must hold the key clients send")
    try:
        router = load_configured(settings.route, settings.stronger)
        conditions = f"verifier {router.route.verifier}, k {router.route.k}, horizon {router.route.horizon}"
        show(f"router    {router.name}, threshold {router.threshold:.4g}; {conditions}")
        fitted = router.router.fitted_with
        if fitted and fitted.verifier_sha256 not in (None, source_sha256(router.route.verifier)):
            show("          its verifier has changed since the fit: fit the router again, or watch its calibration")
        slm, wanted = settings.models["slm"], router.threshold * {"entropy": 1.0, "heuristic": ENTROPY}.get(router.name, 0)
        if slm.vocabulary is None and wanted > (most := math.log(slm.top_logprobs + 1)):
            show(f"          it wants an entropy of {wanted:.2f} nats; {slm.top_logprobs} alternatives show {most:.2f}")
        if router.model is not None and router.model.range_2F is None:
            show("          it does not know what it was fitted on, so texts can move it anywhere: fit the router again")
    except R2VError as error:
        found.append(str(error))
    if settings.telemetry is not None and find_spec("opentelemetry") is None:
        found.append(NO_OTEL)
    if settings.verdicts:
        named = ", ".join(verdict.name for verdict in parse_verdicts(settings.verdicts))
        show(f"verdicts  {named}; the first that knows one is the outcome of a session to which none is sent")
    try:
        _check_ledger(Path(settings.store.path))
        show(f"ledger    {settings.store.path}")
        if (shipping := shipping_of(settings.store)) is not None:
            shipping.shared.prepare()
            show(f"shared    {shipping.shared.name}")
            shipping.close()
        if (connection := redis_of(settings.store)) is not None:
            asyncio.run(_pinged(connection))
            most = settings.store.redis_replicas
            beside = f", and {most} replicas have what it wrote" if most else ""
            show(f"redis     answers{beside}")
    except (OSError, R2VError) as error:
        found.append(str(error))
    for role, model in settings.models.items():
        try:
            asyncio.run(_probed(make_client(model, role), settings.route.k if role == "slm" else None))
            show(f"{role:<9} {model.model} at {model.base_url} answers")
        except (R2VError, ModelError) as error:
            found.append(str(error))
    return found


def _check_ledger(path: Path) -> None:
    """Opens a ledger that is there; of another only whether it could be made. Raises ArtifactError, OSError."""
    if path.exists():
        Ledger(path).close()
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be made ({error.strerror}); choose another store.path") from None


async def _pinged(connection: Connection) -> None:
    """Raises OSError where Redis, or as many of its replicas as are wanted, do not answer."""
    try:
        await connection.run(("PING",))
    finally:
        await connection.close()


async def _probed(client: Client, k: int | None) -> None:
    """Ask as a step does; k: candidates of the SLM, which alone is asked for log-probabilities. Raises ModelError where the
    model takes no request.
    """
    try:
        await client.probe(min(k or 1, 2), logprobs=k is not None)
    finally:
        await client.close()
