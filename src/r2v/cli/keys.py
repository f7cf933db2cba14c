"""`r2v keys`: keys of clients, made and revoked while the gateway runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from r2v.cli.common import cli, gateway_module
from r2v.core.errors import SettingsError
from r2v.runtime.settings import load

if TYPE_CHECKING:
    from r2v.gateway.keys import KeyStore, StoredKey

T = TypeVar("T")
keys = typer.Typer(help="Keys of clients: made, listed, rotated and revoked while the gateway runs.", no_args_is_help=True)
cli.add_typer(keys, name="keys", rich_help_panel="Gateway")
Config = Annotated[Path, typer.Option(help="Settings of the gateway.")]
Name = Annotated[str, typer.Argument(help="Of the key, e.g. ci or alice-laptop.")]


@keys.command()
def create(
    name: Name,
    owner: Annotated[
        str | None, typer.Option(help="Whose it is: keys of one owner share sessions; the name if left out.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="agent, outcomes, admin; repeat. agent and outcomes if left out.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may ask for, * for any part; repeat.")] = None,
    overrides: Annotated[bool, typer.Option("--overrides", help="It may choose the model or threshold of a step.")] = False,
    usd_per_day: Annotated[float | None, typer.Option(min=0, help="What it may spend a day.")] = None,
    calls_per_day: Annotated[int | None, typer.Option(min=0, help="Calls of the teacher a day.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=0, help="Tokens a day.")] = None,
    sessions_per_day: Annotated[int | None, typer.Option(min=0, help="Sessions that it may begin a day.")] = None,
    config: Config = Path("r2v.yaml"),
) -> None:
    """Make a key. It is shown once: only its hash is kept."""
    gateway_module()
    from r2v.gateway.keys import made_key
    from r2v.gateway.settings import LimitSettings

    budget = LimitSettings(teacher_calls=calls_per_day, tokens=tokens_per_day, usd=usd_per_day, sessions=sessions_per_day)
    key, stored = made_key(name, owner or name, scope or ["agent", "outcomes"], model or ["*"], overrides, budget)

    async def make(store: KeyStore) -> None:
        if any(one.name == name for one in await store.all()):
            raise SettingsError(f"there is a key {name}; `r2v keys rotate {name}` replaces it")
        await store.put(stored)

    _with_store(config, make, create=True)
    typer.echo(
        f"key       {key}\nowner     {stored.owner}; may {', '.join(stored.scopes)}\nnext      send it as the API key"
    )


@keys.command("list")
def list_keys(config: Config = Path("r2v.yaml")) -> None:
    """The keys that were made; those of the environment are not among them."""
    gateway_module()

    async def read(store: KeyStore) -> list[StoredKey]:
        return await store.all()

    found = _with_store(config, read)
    for one in found:
        made = time.strftime("%Y-%m-%d", time.gmtime(one.created))
        limits = ", ".join(
            f"{value} {name}" for name, value in msgspec.structs.asdict(one.budget).items() if value is not None
        )
        extra = f"{'; overrides' if one.overrides else ''}{f'; a day: {limits}' if limits else ''}"
        typer.echo(f"{one.name:<20} {one.owner:<20} {made}  {', '.join(one.scopes)}; models {', '.join(one.models)}{extra}")
    if not found:
        typer.echo("no key was made\nnext      r2v keys create NAME")


@keys.command()
def rotate(
    name: Name,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that the old key stays valid.")] = 0.0,
    config: Config = Path("r2v.yaml"),
) -> None:
    """Put a new key in the place of one; owner, limits and sessions stay."""
    gateway_module()
    from r2v.gateway.keys import rotated

    async def renew(store: KeyStore) -> str:
        stored = next((one for one in await store.all() if one.name == name), None)
        if stored is None:
            raise SettingsError(f"there is no key {name}; `r2v keys list` shows all")
        key, renewed = rotated(stored, grace)
        await store.put(renewed)
        return key

    old = f"is valid for {grace:g} s more" if grace else "is refused from now on"
    typer.echo(f"key       {_with_store(config, renew)}\nthe old   {old}")


@keys.command()
def revoke(name: Name, config: Config = Path("r2v.yaml")) -> None:
    """End a key; a gateway that runs refuses it after a second."""
    gateway_module()

    async def end(store: KeyStore) -> bool:
        return await store.remove(name)

    if not _with_store(config, end):
        raise SettingsError(f"there is no key {name}; `r2v keys list` shows all")
    typer.echo(f"revoked   {name}")


def _with_store(config: Path, use: Callable[[KeyStore], Awaitable[T]], *, create: bool = False) -> T:
    """What `use` makes of the keys of a gateway. Raises R2VError, also where there is no ledger and it is not to be made."""
    from r2v.gateway.ledger import Ledger
    from r2v.gateway.settings import GatewaySettings
    from r2v.gateway.stores import shared_state

    settings = load(config, GatewaySettings, hint="`r2v init FILE` writes gateway settings to start from")
    path = Path(settings.store.path)
    if not create and not path.exists():
        if settings.store.redis_env is None:
            raise SettingsError(f"there is no ledger {path}, and so no key; `r2v keys create NAME` makes both")
        path = Path(":memory:")  # the keys are in Redis
    ledger = Ledger(path)

    async def used() -> T:
        sessions, _, store = shared_state(settings, ledger)
        try:
            return await use(store)
        except OSError as error:
            raise SettingsError(f"the keys are out of reach ({error})") from None
        finally:
            await sessions.close()

    try:
        return asyncio.run(used())
    finally:
        ledger.close()
