"""Traces and metrics over OTLP/HTTP, by OpenTelemetry's conventions for generative AI: a span a step and a model call.

No text of a message, no answer and no key is in them. Spans wait in a queue of limited length (`OTEL_BSP_MAX_QUEUE_SIZE`)
for a thread that sends them; what finds no room there, or no collector, is dropped. `r2v[otel]` is loaded only where it is
configured.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import r2v
from r2v.clients.base import Client
from r2v.clients.endpoint import trace_headers
from r2v.clients.tokens import Tokens
from r2v.core.errors import ModelError, SettingsError
from r2v.gateway.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from r2v.gateway.rows import Entry
    from r2v.gateway.step import RequestOptions, StepAnswer
    from r2v.messages.conversation import Request

DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(4**i for i in range(14))
"""Both as the conventions say."""
PROVIDERS = {"openai_responses": "openai"}
"""Providers of ours that the conventions call otherwise."""
NAME = 100
"""Characters of the name of a model that a client asked for."""
CLOSE_S = 2.0
"""How long the end of a process waits for the collector to take the rest."""
FACTS = {
    "arm": "r2v.source", "reason": "r2v.reason", "risk": "r2v.score", "threshold": "r2v.threshold",
    "cost-usd": "r2v.cost_usd", "overhead-ms": "r2v.overhead_ms", "decision-id": "r2v.decision_id", "step": "r2v.step",
    "model": "gen_ai.response.model",
}  # fmt: skip
"""Facts of a step (`StepAnswer.facts`) -> attributes."""


@dataclass(eq=False)
class ModelCall:
    """One call to a model while it is made."""

    tokens: Tokens | None = None
    """That its answers took, once they are known."""


@dataclass(frozen=True, eq=False)
class _Traced:
    """The step that is being served, and what its spans hang from."""

    telemetry: Telemetry
    span: Span
    context: Context


_step: ContextVar[_Traced | None] = ContextVar("traced_step", default=None)


@contextmanager
def model_call(role: str, client: Client | None, answers: int) -> Iterator[ModelCall]:
    """A span around a call to a model, where steps are traced.

    Args:
        role: slm, teacher or verifier.
        client: of the model; None: a verifier's own.
        answers: that it is asked for.
    """
    call, traced = ModelCall(), _step.get()
    if traced is None:
        yield call
        return
    with traced.telemetry.call(traced, call, role, client, answers):
        yield call


NO_OTEL = "telemetry needs the extra otel: pip install 'r2v[otel]'"


class Telemetry:
    """Of one process."""

    def __init__(self, settings: TelemetrySettings) -> None:
        """Raises SettingsError where `r2v[otel]` is not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError:
            raise SettingsError(NO_OTEL) from None
        self._api, self._propagator, self._propagates = trace, TraceContextTextMapPropagator(), settings.propagate
        own = {"service.name": "r2v", "service.version": r2v.__version__, "service.instance.id": str(uuid.uuid4())}
        resource = (
            Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect())
        )  # the environment goes first
        base = None if settings.otlp is None else settings.otlp.rstrip("/")
        spans = OTLPSpanExporter(endpoint=base and f"{base}/v1/traces")
        metrics = OTLPMetricExporter(endpoint=base and f"{base}/v1/metrics")
        self._exporters = (spans, metrics)
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(spans))
        meters = MeterProvider([PeriodicExportingMetricReader(metrics)], resource=resource, shutdown_on_exit=False)
        self._providers = (tracers, meters)
        self._tracer = tracers.get_tracer("r2v", r2v.__version__)
        meter = meters.get_meter("r2v", r2v.__version__)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=DURATION_S,
        )  # fmt: skip
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )  # fmt: skip

    async def traced(self, request: Request, options: RequestOptions, step: Awaitable[StepAnswer]) -> StepAnswer:
        """The answer of a step, with a span around it. Raises what the step raises."""
        model = "".join(c for c in request.wanted_model[:NAME] if c.isprintable())
        parent = None if options.traceparent is None else self._propagator.extract({"traceparent": options.traceparent})
        span = self._tracer.start_span(
            f"chat {model}", parent, self._api.SpanKind.SERVER,
            {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "r2v", "gen_ai.request.model": model,
                "gen_ai.request.stream": request.stream, "r2v.dry": options.dry,
            },
        )  # fmt: skip
        token = _step.set(_Traced(self, span, self._api.set_span_in_context(span, parent)))
        try:
            answer = await step
            self._describe(span, options, answer.facts)
            span.set_attributes(_usage(Tokens.of(answer.reply.usage)))
            return answer
        except BaseException as error:
            facts: Mapping[str, Any] = getattr(error, "facts", {})  # of a Refused
            self._describe(span, options, facts)
            self._fail(span, str(facts.get("reason") or _kind(error)))
            raise
        finally:
            _step.reset(token)
            span.end()

    def note(self, entry: Entry) -> None:
        """What the row of the step being served knows beside the facts for its client."""
        if (traced := _step.get()) is not None:
            traced.span.set_attributes({
                "r2v.route": entry.route, "r2v.mode": entry.mode, "r2v.propensity": entry.propensity,
                "r2v.saved_usd": entry.saved_usd, "r2v.candidates": entry.candidates,
            })  # fmt: skip

    @contextmanager
    def call(self, traced: _Traced, call: ModelCall, role: str, client: Client | None, answers: int) -> Iterator[None]:
        """`model_call` of a traced step."""
        attributes: dict[str, Any] = {"gen_ai.operation.name": "chat"}
        name = "chat"
        if client is not None:
            there, settings = urlsplit(client.settings.base_url), client.settings
            name = f"chat {settings.model}"
            attributes |= {
                "gen_ai.provider.name": PROVIDERS.get(settings.provider, settings.provider),
                "gen_ai.request.model": settings.model, "server.address": there.hostname or "",
                "server.port": there.port or (443 if there.scheme == "https" else 80),
            }  # fmt: skip
        details = {"r2v.role": role, **({"gen_ai.request.choice.count": answers} if answers > 1 else {})}
        span = self._tracer.start_span(name, traced.context, self._api.SpanKind.CLIENT, attributes | details)
        headers: dict[str, str] = {}
        if self._propagates:
            self._propagator.inject(headers, self._api.set_span_in_context(span))
        start, token = time.perf_counter(), trace_headers.set(headers)
        try:
            yield
        except BaseException as error:
            attributes["error.type"] = _kind(error)
            self._fail(span, attributes["error.type"])
            raise
        finally:
            trace_headers.reset(token)
            self._duration.record(time.perf_counter() - start, attributes)
            if call.tokens is not None:
                for kind, count in (("input", call.tokens.prompt), ("output", call.tokens.output)):
                    self._usage.record(count, {**attributes, "gen_ai.token.type": kind})
                span.set_attributes(_usage(call.tokens))
            span.end()

    async def close(self) -> None:
        """Send what is left, as far as the collector takes it at once."""

        def end() -> None:
            for provider in self._providers:
                provider.shutdown()

        ending = threading.Thread(target=end, daemon=True)  # which waits for half a minute where nobody answers
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_S)
        for exporter in self._exporters if ending.is_alive() else ():
            exporter.shutdown()

    def _describe(self, span: Span, options: RequestOptions, facts: Mapping[str, Any]) -> None:
        known = {name: facts[fact] for fact, name in FACTS.items() if facts.get(fact) is not None}
        if "session-id" in facts:  # as the ledger has it: hashed where it says more than a name should
            known["gen_ai.conversation.id"] = f"{options.key.tenant}/{facts['session-id']}"
        span.set_attributes(known)

    def _fail(self, span: Span, kind: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._api.StatusCode.ERROR)


def _kind(error: BaseException) -> str:
    """`error.type`: never the words of an error, which may be a model's."""
    if isinstance(error, ModelError) and (error.clients_fault or error.status == 429):
        return str(error.status)
    return type(error).__name__


def _usage(tokens: Tokens) -> dict[str, int]:
    found = {"gen_ai.usage.input_tokens": tokens.prompt, "gen_ai.usage.output_tokens": tokens.output}
    if tokens.cached:
        found["gen_ai.usage.cache_read.input_tokens"] = tokens.cached
    if tokens.cache_written:
        found["gen_ai.usage.cache_creation.input_tokens"] = tokens.cache_written
    return found
