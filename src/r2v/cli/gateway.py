"""Commands of the gateway."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2v.cli.common import Set, cli, gateway_module, imported
from r2v.core.errors import SettingsError
from r2v.runtime.settings import load
from r2v.runtime.store import write_episodes, write_text

if TYPE_CHECKING:
    from r2v.gateway.settings import GatewaySettings


@cli.command(rich_help_panel="Gateway")
def serve(
    config: Annotated[Path | None, typer.Argument(help="Gateway settings; `r2v init` writes a file to start from.")] = None,
    mock: Annotated[bool, typer.Option("--mock", help="Mock models beside it: needs no keys, no config.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the port in the config.")] = None,
    overrides: Set = None,
) -> None:
    """Serve the gateway: agents change their base URL to it, and each of their steps is routed.

    One chat request is one step. OpenAI Chat Completions, Responses (stateless) and Anthropic Messages; the page is at `/`.
    """
    gateway = gateway_module()

    if config is None and not mock:
        raise SettingsError("give a config, or --mock for mock models; `r2v init` writes a config to start from")
    settings = gateway.mock_settings(port or 8321) if config is None else _load(config, overrides or [])
    if port is not None:
        settings = settings.but(server=settings.server.but(port=port))

    def announce(url: str) -> None:
        key = (
            gateway.MOCK_KEY
            if os.environ.get(settings.server.key_env) == gateway.MOCK_KEY
            else f"${settings.server.key_env}"
        )
        typer.echo(f"gateway  {url}   (live page; OpenAI base URL {url}/v1, Anthropic base URL {url})")
        typer.echo(f"key      {key}\nledger   {settings.store.path}")
        typer.echo(f"try      curl {url}/v1/chat/completions -H 'authorization: Bearer {key}' \\")
        typer.echo("""         -d '{"model": "r2v", "messages": [{"role": "user", "content": "hello"}]}' -i""")
        sys.stdout.flush()

    gateway.serve(settings, mock=mock, announce=announce)


@cli.command("serve-model", rich_help_panel="Gateway")
def serve_model(
    model: Annotated[str, typer.Argument(help="Folder of a run (its SLM is served), model folder, or hub id.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8322,
    host: Annotated[str, typer.Option(help="Where to listen; there is no key, so keep it local.")] = "127.0.0.1",
) -> None:
    """Serve a trained SLM through an OpenAI-style endpoint with log-probabilities: an upstream for the gateway."""
    gateway = gateway_module()
    from r2v.gateway.model_server import model_app
    from r2v.pipeline.agents import make_slm
    from r2v.pipeline.run_folder import RunFolder
    from r2v.pipeline.settings import SlmSettings

    run_folder = Path(model)
    if (run_folder / "settings.yaml").exists():
        run = RunFolder(run_folder)
        run.finished("prefer")
        settings, folder = run.settings.slm, run.kept_model
    else:
        settings, folder = SlmSettings(), Path(model)
    app = model_app(make_slm(settings, folder), run_folder.name)
    gateway.serve_app(app, host, port, lambda url: typer.echo(f"model    {url}/v1   ({folder})"))


@cli.command(rich_help_panel="Gateway")
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the gateway settings.")] = Path("r2v.yaml"),
) -> None:
    """Write gateway settings to start from."""
    if path.exists():
        raise SettingsError(f"{path} exists; give another path")
    write_text(path, files("r2v.gateway").joinpath("start.yaml").read_text("utf-8"))
    typer.echo(f"settings  {path}\nnext      r2v check {path}")


@cli.command(rich_help_panel="Gateway")
def check(
    thing: Annotated[
        str, typer.Argument(help="Gateway settings; a router folder; package.module:Thing; or a built-in part's short name.")
    ],
) -> None:
    """Check gateway settings (keys, router, ledger, models), or that a part of your own keeps the promises of its kind."""
    config = Path(thing)
    if not config.is_file():
        from r2v.cli.parts import check_thing

        for line in check_thing(thing):
            typer.echo(line)
        return
    gateway_module()
    from r2v.gateway.check import problems

    found = problems(_load(config), typer.echo)
    if found:
        raise SettingsError("; ".join(found))
    typer.echo(f"next      r2v serve {config}")


@cli.command(rich_help_panel="Parts of your own")
def new(
    part: Annotated[str, typer.Argument(metavar="router|domain|verifier", help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its name, e.g. patience.")],
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.py if not given.")] = None,
) -> None:
    """Write a router, domain or verifier that works, to start from."""
    from r2v.cli.parts import new_part

    path, thing = new_part(part, name, out)
    typer.echo(f"written  {path}\nnext     r2v check {thing}")
    uses = {
        "router": f'routers: [r2v, {{kind: "{thing}"}}]',
        "domain": f'environment: {{kind: "{thing}"}}',
        "verifier": f'verifier = "{thing}" in a domain, or route: {{verifier: "{thing}"}}',
    }
    typer.echo(f"then     {uses[part]} in settings")


@cli.command(rich_help_panel="Gateway")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False) -> None:
    """Say what of r2v can run on this machine: versions, extras, programs, keys (only whether they are set), data, disk."""
    from r2v.cli.doctor import advice, examine

    found = examine()
    for name, value in found.items():
        shown = ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) if isinstance(value, dict) else _shown(value)
        typer.echo(f"{name.replace('_', ' '):<13} {shown}")
    for line in advice(found):
        typer.echo(f"- {line}")
    typer.echo("next          r2v serve --mock, or r2v run examples/household.yaml --out runs/quickstart")
    if as_json:
        typer.echo(json.dumps(found))


def _load(config: Path, overrides: Sequence[str] = ()) -> GatewaySettings:
    from r2v.gateway.settings import GatewaySettings

    return load(config, GatewaySettings, overrides, hint="`r2v init FILE` writes gateway settings to start from")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return {True: "yes", False: "no", None: "no"}[value] if isinstance(value, bool | None) else str(value)


@cli.command(rich_help_panel="Gateway")
def export(
    ledger: Annotated[Path, typer.Argument(help="The gateway's ledger (store.path).")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
) -> None:
    """Write the sessions with an outcome as episodes (Parquet); `r2v fit` takes the file as it is."""
    episodes, unknown = imported(ledger, "ledger", None)
    write_episodes(out, episodes)
    typer.echo(
        f"{len(episodes)} episodes, {unknown} sessions without an outcome\nwritten  {out}\nnext     r2v fit {out} --out DIR"
    )
