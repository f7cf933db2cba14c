"""Commands of the gateway."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from r2v.cli.common import check_parquet_out, cli, counted, gateway_module
from r2v.cli.launch import AGENTS, admin_key, ask, inbound_key, key_in_shell, launch, page
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.types import Episode
from r2v.runtime.settings import load
from r2v.runtime.store import write_episodes, write_text

if TYPE_CHECKING:
    from r2v.gateway.settings import GatewaySettings

CONFIG = Path("r2v.yaml")


Teacher = Literal["anthropic", "openai"]
TEACHERS: Mapping[Teacher, Mapping[str, str]] = {
    "anthropic": {
        "base_url": "https://api.anthropic.com", "model": "claude-opus-4-5", "key_env": "ANTHROPIC_API_KEY",
        "price": "{input: 5, output: 25, cached: 0.5, cache_write: 6.25}",
    },
    "openai": {
        "base_url": "https://api.openai.com/v1", "model": "gpt-5.2", "key_env": "OPENAI_API_KEY",
        "price": "{input: 1.75, output: 14, cached: 0.175}",
    },
}  # fmt: skip
"""What `r2v init` writes of a teacher."""


@cli.command(rich_help_panel="Gateway")
def serve(
    config: Annotated[Path | None, typer.Argument(help="Gateway settings; `r2v init` writes a file to start from.")] = None,
    mock: Annotated[bool, typer.Option("--mock", help="Mock models beside it: needs no keys, no config.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the port in the config.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that serve the port.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Page, stats and metrics there, in a process of their own.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one setting (repeatable), e.g. --set route.mode=shadow.")
    ] = None,
) -> None:
    """Serve the gateway: agents change their base URL to it, and each of their steps is routed.

    One chat request is one step. OpenAI Chat Completions and Responses, and Anthropic Messages; the page is at `/`. At a
    SIGHUP it reads its config and its router again, and options of this command go before the config as they did.
    """
    gateway = gateway_module()

    if config is None and not mock:
        raise SettingsError("give a config, or --mock for mock models; `r2v init` writes a config to start from")
    options = {"port": port, "workers": workers, "admin_port": admin_port}
    given = {key: value for key, value in options.items() if value is not None}

    def of_file() -> GatewaySettings:
        return gateway.mock_settings(port or 8321) if config is None else _read(config, overrides or [])

    def with_options(settings: GatewaySettings) -> GatewaySettings:
        return settings.but(server=settings.server.but(**given))

    def read() -> GatewaySettings:
        return with_options(of_file())

    settings = of_file()
    if config is not None:
        inbound_key(settings)
    in_shell = key_in_shell(settings)
    settings = with_options(settings)

    def announce(url: str, admin_url: str) -> None:
        key = inbound_key(settings)
        if key != gateway.MOCK_KEY and not sys.stdout.isatty():  # not into a log
            key = in_shell
        typer.echo(f"gateway  {url}   (OpenAI base URL {url}/v1, Anthropic base URL {url})")
        opens = admin_key(settings)
        if opens is None:
            shown = f"{admin_url}   (takes an admin's key: set {settings.server.admin_key_env})"
        elif opens == inbound_key(settings):
            shown = page(admin_url, key) if key == opens else f"{admin_url}   (its key: {key})"
        else:
            named = f"{admin_url}   (its key: ${settings.server.admin_key_env})"
            shown = page(admin_url, opens) if sys.stdout.isatty() else named
        from r2v.gateway.postgres_url import shared_url
        from r2v.gateway.postgres_url import shown as public

        shared = shared_url(settings.store, os.environ)
        ledger = settings.store.path if shared is None else f"{settings.store.path}, shipped to {public(shared)}"
        typer.echo(f"key      {key}\nledger   {ledger}\npage     {shown}")
        typer.echo(f'try      curl {url}/v1/chat/completions -H "authorization: Bearer {key}" \\')
        typer.echo("""         -d '{"model": "r2v", "messages": [{"role": "user", "content": "hello"}]}' -i""")
        sys.stdout.flush()

    if settings.server.control_port is None:
        gateway.serve(settings, mock=mock, announce=announce, read=read)
    else:
        from r2v.gateway.workers import serve_planes

        serve_planes(settings, mock=mock, announce=announce, read=read)


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
    path: Annotated[Path, typer.Argument(help="Where to write the gateway settings.")] = CONFIG,
    slm_url: Annotated[str, typer.Option(help="The SLM's OpenAI-style server.")] = "http://localhost:8000/v1",
    slm_model: Annotated[str, typer.Option(help="Its name there.")] = "qwen3-8b",
    teacher: Annotated[Teacher, typer.Option(help="Who hosts the teacher.")] = "anthropic",
    teacher_model: Annotated[str | None, typer.Option(help="Its name there, if another one; then mend its price.")] = None,
) -> None:
    """Write gateway settings to start from: the teacher answers every step, the SLM is compared with it (mode observe)."""
    from r2v.clients.settings import is_url

    if path.exists():
        raise SettingsError(f"{path} exists; give another path")
    if not is_url(slm_url):
        raise SettingsError(f"--slm-url {slm_url!r} is no URL; give one such as http://localhost:8000/v1")
    known = TEACHERS[teacher]
    values = {
        **known, "teacher": teacher, "slm_url": json.dumps(slm_url), "slm_model": json.dumps(slm_model),
        "model": json.dumps(teacher_model) if teacher_model else known["model"],
    }  # fmt: skip
    write_text(path, Template(files("r2v.gateway").joinpath("start.yaml").read_text("utf-8")).substitute(values))
    config = "" if path == CONFIG else f" --config {path}"
    typer.echo(f"settings  {path}: the teacher answers, the SLM is compared with it")
    typer.echo(f"next      export {known['key_env']}=...\n          r2v check {path}")
    typer.echo(f"          r2v launch claude{config}    (or {', '.join(list(AGENTS)[1:])})")


@cli.command("launch", rich_help_panel="Gateway")
def launch_agent(
    agent: Annotated[str, typer.Argument(help=", ".join(AGENTS))],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS]", help="The agent's own.")] = None,
    config: Annotated[Path, typer.Option(help="Gateway settings, of `r2v init`.")] = CONFIG,
) -> None:
    """Run an agent program with the gateway as its model, which is started for it where it does not run yet.

    The agent sees the gateway's key and none of the models' keys. Ends with the agent's exit status.
    """
    gateway_module()
    if agent not in AGENTS:
        raise SettingsError(f"{agent} is not known to launch; known: {', '.join(AGENTS)}. Others need a base URL and a key")
    settings = _load(config)
    raise typer.Exit(launch(AGENTS[agent], arguments or [], settings, config, lambda line: typer.echo(line, err=True)))


@cli.command(rich_help_panel="Gateway")
def promote(
    config: Annotated[Path, typer.Argument(help="Settings of the gateway that runs.")] = CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Whatever the evidence says; it is recorded.")] = False,
) -> None:
    """Move the running gateway up one mode (observe, shadow, canary, active), where the evidence suffices."""
    _change_mode(config, {"action": "promote", "force": force})


@cli.command(rich_help_panel="Gateway")
def rollback(
    config: Annotated[Path, typer.Argument(help="Settings of the gateway that runs.")] = CONFIG,
    to: Annotated[Literal["observe", "shadow", "canary"], typer.Option(help="The mode to go to.")] = "observe",
) -> None:
    """Move the running gateway down, at once and without conditions."""
    _change_mode(config, {"action": "rollback", "to": to})


@cli.command(rich_help_panel="Gateway")
def reload(config: Annotated[Path, typer.Argument(help="Settings of the gateway that runs.")] = CONFIG) -> None:
    """Have the running gateway read its settings and router again; where something is wrong, the old stay in use."""
    gateway_module()
    found = ask(_load(config), "/v1/reload", {}, config=config)
    typer.echo(f"settings {found['settings']}\nrouter   {found['router']}")


def _change_mode(config: Path, wanted: dict[str, object]) -> None:
    gateway_module()
    found = ask(_load(config), "/v1/mode", wanted, config=config)
    typer.echo(f"mode     {found['mode']}: {found['reason']}{' (forced)' if found['forced'] else ''}")
    typer.echo(f"next     {found['next']['reason']}")


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


def _load(config: Path) -> GatewaySettings:
    """With a key for clients, where none is set."""
    settings = _read(config)
    inbound_key(settings)
    return settings


def _read(config: Path, overrides: Sequence[str] = ()) -> GatewaySettings:
    from r2v.gateway.settings import GatewaySettings

    return load(config, GatewaySettings, overrides, hint="`r2v init FILE` writes gateway settings to start from")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return {True: "yes", False: "no", None: "no"}[value] if isinstance(value, bool | None) else str(value)


@cli.command(rich_help_panel="Gateway")
def ship(
    journal: Annotated[Path, typer.Argument(help="A ledger in SQLite: of a gateway that is gone, or one to move.")],
    url: Annotated[Path, typer.Argument(metavar="URL", help="The shared ledger, postgresql://USER@HOST/DATABASE.")],
    again: Annotated[
        bool, typer.Option("--again", help="All of it, also what has been shipped; rows are kept once.")
    ] = False,
) -> None:
    """Ship a gateway's ledger to a shared one in Postgres; what is there already stays as it is."""
    from r2v.logs.ledger import shipped

    rows, there = shipped(journal, url, again=again)
    typer.echo(f"{rows} rows of {journal} shipped\nnext     r2v advise {there}")


@cli.command(rich_help_panel="Gateway")
def archive(
    ledger: Annotated[Path, typer.Argument(help="The gateway's ledger (store.path, or store.url).")],
    out: Annotated[Path, typer.Argument(help="Folder of the archive; ledgers of all replicas may share it.")],
    replica: Annotated[str | None, typer.Option(help="The ledger's name in the archive; its own identity.")] = None,
) -> None:
    """Write the days that have ended as Parquet, which `r2v advise`, `fit`, `inspect` and `export` read; call it once a day.

    A day that is there is written again only where the ledger has more of it.
    """
    from r2v.logs.ledger import archived

    steps = days = 0
    for day, of_day in archived(ledger, out, replica):
        typer.echo(f"{day}  {counted(of_day, 'step')}")
        steps, days = steps + of_day, days + 1
    if not days:
        typer.echo(f"nothing new: no day of {ledger} has ended that is not in {out}")
        return
    typer.echo(f"{counted(steps, 'step')} written\narchive  {out}\nnext     r2v advise {out}")


@cli.command(rich_help_panel="Gateway")
def export(
    ledger: Annotated[Path, typer.Argument(help="The gateway's ledger (store.path, or store.url).")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
) -> None:
    """Write the sessions with an outcome as episodes (Parquet); `r2v fit` takes the file as it is."""
    from r2v.logs.ledger import FORMAT

    check_parquet_out(out, ledger)
    unknown = 0

    def ended() -> Iterator[Episode]:
        nonlocal unknown
        for episode in FORMAT.read(ledger):
            if episode.success is None:
                unknown += 1
            else:
                yield episode

    episodes = ended()
    if (first := next(episodes, None)) is None:
        mend = "send some (POST /v1/outcomes), or set `verdicts`"
        raise ArtifactError(f"{ledger} has no session with an outcome ({unknown} without one); {mend}")
    written = write_episodes(out, chain([first], episodes))
    typer.echo(f"{counted(written, 'episode')}, {counted(unknown, 'session')} without an outcome")
    typer.echo(f"written  {out}\nnext     r2v fit {out} --out DIR")
