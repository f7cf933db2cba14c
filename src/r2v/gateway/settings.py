"""Settings of the gateway: one YAML file, `version: 1`. Secrets stand in environment variables, never in the file.

version: 1
models:
  slm:     {base_url: http://localhost:8000/v1, model: qwen3-8b, price: {input: 0.1, output: 0.4}}
  teacher: {provider: anthropic, base_url: https://api.anthropic.com, model: claude-opus, api_key_env: ANTHROPIC_API_KEY,
            price: {input: 5, output: 25}}
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta

from r2v.clients.settings import ClientSettings, PriceSettings
from r2v.core.types import TEACHER
from r2v.gateway.postgres_url import problem_of
from r2v.runtime.settings import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
    check_variable,
)
from r2v.verifiers import name_of, verifier_named

Port = Annotated[int, Meta(gt=0, le=65_535)]
Mode = Literal["observe", "shadow", "canary", "active"]
SQLITE = "sqlite:///"


class ServedModelSettings(ClientSettings):
    price: PriceSettings
    context_tokens: PositiveInt | None = 131_072
    """Requests that are longer, at four characters a token, are not sent to it: the other model serves them."""
    breaker_failures: PositiveInt | None = 5


class RouteSettings(Settings):
    """What is left out of k, horizon and verifier is what the router was fitted with, where its folder records it."""

    k: Annotated[int, Meta(ge=1, le=32)] = 4
    """Candidates drawn from the SLM at each step."""
    clear: tuple[Fraction, Fraction] | None = None
    """Adaptive K: draw one candidate first; where its risk is below the first or at least the second of these, decide on
    it alone, else draw the other k - 1. Fit the router on logs of the same setting: fewer candidates look more alike."""
    horizon: PositiveInt = 50
    """Steps of an episode that the risk is scaled by; longer ones go on."""
    router: str = "rules"
    """Folder of a fitted router (`r2v run`, `r2v fit`); or the one that comes fitted, recorded; or a rule that needs no fit
    (rules, entropy, ...)."""
    outside: Literal["escalate", "abstain", "clip"] = "escalate"
    """Where a step lies far outside of what the router was fitted on (`out_of_range`): ask the teacher, let the SLM go on,
    or decide as if it lay at the edge."""
    threshold: float | None = None
    """None: the one in the router's folder, or the rule's own."""
    verifier: str = "tool_calls"
    """What scores the candidates, e.g. `{kind: learned, path: FOLDER}`; `tool_calls` knows nothing of the agent. A router
    fitted on a ledger does not record it: set this to what the gateway had when it wrote that ledger."""
    stream: Literal["hold", "early", "auto"] = "hold"
    """hold: send an answer when it is chosen. early: where the step before was below the threshold (or there was none), pass
    the SLM's first draft through as it comes, without drawing others. auto: only where it was below half of it."""
    mode: Mode = "active"
    """Each lets the SLM do no more than the next. observe: the teacher answers; the SLM is drafted on a share of the steps,
    and compared. shadow: the teacher answers; the SLM is drafted and the router decides on every step, for the ledger only.
    canary: a share of the sessions is routed, the others are as in observe. active: all are routed. `r2v promote` and
    `r2v rollback` change it while the gateway runs and for later runs, until this setting is edited."""
    observe_share: Fraction = 0.25
    """Of the steps on which observe drafts the SLM: 800 steps give the 200 comparisons that `r2v promote` wants, at the
    price of a quarter of the SLM's calls."""
    observe_wait_s: Annotated[float, Meta(ge=0)] = 0.5
    """How long the teacher's finished answer waits for the draft that it is compared with."""
    canary_share: Fraction = 0.1
    explore: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of steps on which the decision is drawn at random, half and half, with its probability logged."""
    hold_steps: PositiveInt = 1
    """Steps the teacher answers from an escalation on, that one included: adjacent calls keep its cache warm."""
    switch_usd: NonNegativeFloat = 0.0
    """Price of a lost prompt cache: the threshold rises by switch_usd / failure_usd when the teacher's cache is cold. Only
    for routers whose score is a probability."""
    failure_usd: PositiveFloat = 1.0
    """Price of a failed episode."""
    cache_ttl_s: PositiveFloat = 300.0
    certificate: str | None = None
    """File of `r2v certify`, made for this router at this threshold; the gateway does not start with another."""

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """With the verifier by the name that stands for its settings."""
        return raw | ({"verifier": name_of(raw["verifier"])} if "verifier" in raw else {})

    def __post_init__(self) -> None:
        if self.verifier != "tool_calls":
            verifier_named(self.verifier)


class LimitSettings(Settings):
    """What may be spent; None = no limit."""

    teacher_calls: NonNegativeInt | None = None
    tokens: NonNegativeInt | None = None
    usd: NonNegativeFloat | None = None
    sessions: NonNegativeInt | None = None
    """That may be begun with the teacher at hand; the SLM answers all others alone. Not of a session."""


class BudgetSettings(Settings):
    """Limits that no step may exceed. What an answer costs at most is charged before it is asked for, and a request that
    names no limit of its own is then sent with the model's `max_output_tokens`.
    """

    session: LimitSettings = LimitSettings()
    key_per_day: LimitSettings = LimitSettings()
    """Of each inbound key; days are those of UTC. Where sessions have a limit, a key may begin 1000 a day unless `sessions`
    says otherwise: with a new session for each request it would have none."""
    per_day: LimitSettings = LimitSettings()
    on_exhaustion: Literal["slm", "stop"] = "slm"
    """slm: the SLM answers alone, with code budget_exhausted, while its own answers fit. stop: HTTP 402."""

    def __post_init__(self) -> None:
        if self.session.sessions is not None:
            raise ValueError("budget.session.sessions: a session is one; set it in key_per_day or per_day")


class ServerSettings(Settings):
    host: str = "127.0.0.1"
    port: Port = 8321
    workers: PositiveInt = 1
    """Processes that serve the port."""
    admin_host: str = "127.0.0.1"
    admin_port: Port | None = None
    """Where page, stats, sessions, modes, kill switch and metrics are, in a process of its own. None: on `port`, or on the
    one after it where there are several workers."""
    key_env: str = "R2V_API_KEY"
    """Environment variable with the inbound keys, comma separated."""
    admin_key_env: str = "R2V_ADMIN_KEY"
    """Environment variable with the keys of those who may do everything: the page, modes, the kill switch, all sessions.
    Without it a key that stands alone in `key_env` may; of several none may what concerns the others."""
    require_key: bool = True
    """false: anybody may do everything, if the request is meant for this machine (`allowed_hosts`) and no page of another
    site sent it."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Names that requests may be meant for where no key is required; a page in a browser must not be taken for its user."""
    accepted_models: tuple[str, ...] = ("*",)
    """Names of models that clients may ask for, with * for any part: the router answers them all. `r2v:slm` and
    `r2v:teacher` insist on a model."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the gateway from a browser."""
    max_body_bytes: PositiveInt = 10_000_000
    """Larger requests get a 413."""
    max_bodies_bytes: PositiveInt = 256_000_000
    """Of the bodies of all requests that one process is serving; a further one gets a 503 before it is read. One key gets
    seven eighths of it. Reading a request takes some three times its bytes of memory."""
    max_header_bytes: PositiveInt = 65_536
    """Of the head of a request, with its address; larger ones get a 431."""
    header_timeout_s: PositiveFloat = 10.0
    """For the head of a request to come whole, else 408."""
    body_timeout_s: PositiveFloat = 120.0
    """For its body, else 408."""
    idle_timeout_s: PositiveInt = 5
    """Until a connection is closed on which no further request comes."""
    write_timeout_s: PositiveFloat = 60.0
    """Until a connection is closed whose client reads nothing of its answer."""
    max_connections: PositiveInt = 2_000
    """Of one process, at most half of the files that it may open. A further one takes the place of the one that has waited
    for longest without a whole head of a request; where there is none it gets a 503."""
    keep_alive_s: PositiveFloat = 5.0
    """Streams that wait for the decision send a comment this often; headers wait that long for it."""

    def __post_init__(self) -> None:
        check_variable("server.key_env", self.key_env)
        check_variable("server.admin_key_env", self.admin_key_env)
        if self.control_port == self.port and self.admin_host == self.host and self.port:
            raise ValueError(f"port and admin_port (--port and --admin-port) are both {self.port}; change one of them")
        if self.max_bodies_bytes < 2 * self.max_body_bytes:
            raise ValueError("server.max_bodies_bytes: must be at least twice server.max_body_bytes")

    @property
    def control_port(self) -> int | None:
        """Port of the control plane: None where it is on `port`, 0 for any that is free."""
        return self.admin_port if self.admin_port is not None or self.workers == 1 else self.port and self.port + 1


class StoreSettings(Settings):
    path: str = "r2v-ledger.db"
    redact: bool = True
    """Keep hashes and numbers of messages, not their text. The hashes are keyed."""
    hash_key_env: str | None = None
    """Environment variable with the key of the hashes, where replicas are to have the same; None: a file beside the
    ledger."""
    keep_days: PositiveFloat | None = None
    """Sessions without a step for so long are deleted from the ledger, with their texts, outcomes and budgets; the sums of
    each day stay. None: never."""
    redis_env: str | None = None
    """Environment variable with the URL of a Redis in which replicas share sessions, budgets and the kill switch;
    `redis+sentinel://HOST:PORT,HOST:PORT/NAME` is the one that sentinels call the master of NAME."""
    redis_replicas: NonNegativeInt = 0
    """Of that Redis: each write waits until so many of its replicas have it, and is refused without them. All of them, for a
    failover to forget nothing: with fewer, another one may take over."""
    url: str | None = None
    """`postgresql://USER@HOST/DATABASE`: the ledger that replicas share; that of `path` is then the journal of one of them.
    `sqlite:///PATH` is another way to write `path`. No password: $PGPASSWORD and ~/.pgpass are read."""
    url_env: str | None = None
    """Environment variable with that URL, which may then hold a password."""

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """With `path` where `url` names a file."""
        url = raw.get("url")
        if not isinstance(url, str) or not url.startswith(SQLITE):
            return raw
        path = url.removeprefix(SQLITE)
        if raw.get("path", path) != path:
            raise ValueError(f"store.url names {path}, and store.path {raw['path']}; leave out one of them")
        return {**{key: value for key, value in raw.items() if key != "url"}, "path": path}

    def __post_init__(self) -> None:
        for key in ("hash_key_env", "redis_env", "url_env"):
            check_variable(f"store.{key}", getattr(self, key))
        if self.url is not None and self.url_env is not None:
            raise ValueError("store.url and store.url_env: leave out one of them")
        if self.url is not None and (problem := problem_of(self.url)):
            raise ValueError(f"store.url {problem}")
        if self.redis_replicas and self.redis_env is None:
            raise ValueError("store.redis_replicas: are those of the Redis of store.redis_env, which is missing")


class TelemetrySettings(Settings):
    otlp: str | None = None
    """Base URL of an OTLP/HTTP collector, e.g. http://localhost:4318; None: `OTEL_EXPORTER_OTLP_ENDPOINT`, or that one. The
    other variables of OpenTelemetry (headers, resource, sampler, intervals) count, too."""
    propagate: bool = False
    """Send `traceparent` to the models."""

    def __post_init__(self) -> None:
        if self.otlp is not None and (not re.match(r"https?://[^\s/@]+(/[^\s@?#]*)?$", self.otlp)):
            raise ValueError(
                "telemetry.otlp: write a URL such as http://localhost:4318; keys go into OTEL_EXPORTER_OTLP_HEADERS"
            )


ModelName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=40)]


class GatewaySettings(Settings):
    version: Literal[1]
    models: dict[ModelName, ServedModelSettings]
    """`slm` and `teacher`; further ones are between them, the cheapest first, for routers that choose among several."""
    route: RouteSettings = RouteSettings()
    budget: BudgetSettings = BudgetSettings()
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    telemetry: TelemetrySettings | None = None
    """Traces and metrics for OpenTelemetry; None: none are made. `{}` is enough where the environment says the rest."""
    verdicts: tuple[Any, ...] = ()
    """What says whether the work is right, the most trusted first: names, or {name: {options}} (`r2v.verdicts`)."""

    @property
    def stronger(self) -> tuple[str, ...]:
        """The models between SLM and teacher, the cheapest first, and the teacher."""
        return (*(name for name in self.models if name not in ("slm", TEACHER)), TEACHER)

    def __post_init__(self) -> None:
        if self.verdicts:
            from r2v.verdicts import parse_verdicts  # here, because most gateways have none

            parse_verdicts(self.verdicts)
        if missing := {"slm", "teacher"} - self.models.keys():
            raise ValueError(f"models: {missing.pop()} is missing; a gateway needs slm and teacher")
        if used := {"verifier", "continue"} & self.models.keys():
            raise ValueError(f"models.{used.pop()}: that name is taken; give the model another one")

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        models = raw.get("models")
        if not isinstance(models, dict) or "small" not in models:
            return raw
        if "slm" in models:
            raise ValueError("models: `small` is the old name of `slm`; write one of them")
        return raw | {"models": {"slm" if name == "small" else name: model for name, model in models.items()}}
