"""OpenTelemetry against a real OTLP/HTTP receiver, which decodes what it gets and keeps every byte."""

from __future__ import annotations

import asyncio
import gzip
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from r2v.core.errors import SettingsError
from r2v.gateway.service import Service
from r2v.gateway.settings import TelemetrySettings
from r2v.gateway.telemetry import Telemetry
from servers import KEY, Model, gateway, settings

SECRET = "sk-upstream-1f2e3d"
WORDS = "the password of the blue house is swordfish"
ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": WORDS}]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Collector:
    """What it has received."""

    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    wait_s: float = 0.0

    @property
    def spans(self) -> list[Any]:
        scopes = [scope for part in self.traces for of in part.resource_spans for scope in of.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    @property
    def points(self) -> list[tuple[str, Any]]:
        """(metric, data point) of the last export."""
        scopes = [scope for of in self.metrics[-1].resource_metrics for scope in of.scope_metrics]
        return [(m.name, point) for scope in scopes for m in scope.metrics for point in m.histogram.data_points]


@contextmanager
def collector():
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
            got.raw.append(body)
            got.headers.append({key.lower(): value for key, value in self.headers.items()})
            if self.path == "/v1/traces":
                got.traces.append(ExportTraceServiceRequest.FromString(body))
            else:
                assert self.path == "/v1/metrics"
                got.metrics.append(ExportMetricsServiceRequest.FromString(body))
            time.sleep(got.wait_s)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        got.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield got
        finally:
            server.shutdown()
            thread.join()


def of(thing: Any) -> dict[str, Any]:
    """The attributes of a span, a data point or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in thing.attributes}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def world(host, tmp_path, monkeypatch):
    """Runs a gateway with telemetry; when it has ended, all that it had to say is sent."""
    monkeypatch.setenv("SMALL_KEY", SECRET)

    @contextmanager
    def run(small: Model | None = None, teacher: Model | None = None, **changes: Any):
        small, teacher = small or Model("small-1", error_rate=0.5), teacher or Model("teacher-1")
        changes = {"small__api_key_env": "SMALL_KEY", "small__offers_n": True, **changes}
        config = settings(host(small), host(teacher), tmp_path / "ledger.db", **changes)
        with gateway(config) as (url, _), httpx.Client(base_url=url, timeout=20) as client:
            client.headers["authorization"] = f"Bearer {KEY}"
            yield client, small, teacher

    return run


def ask(client: httpx.Client, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"model": "r2v", "messages": ASK, **more}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_a_step_is_a_span_with_its_decision_and_its_calls_hang_from_it(world):
    with collector() as got:
        with world(telemetry={"otlp": got.url}) as (client, small, _):
            named = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-r2v-session-id": "s1"}
            answer = ask(client, named)
            client.post("/v1/chat/completions", json={"model": "r2v:teacher", "messages": ASK})
        assert all("traceparent" not in headers for headers in small.headers)
    step = next(span for span in got.spans if span.parent_span_id.hex() == PARENT)
    assert step.trace_id.hex() == TRACE and step.kind == step.SPAN_KIND_SERVER and step.name == "chat r2v"
    facts, told = of(step), answer.headers
    assert facts["gen_ai.operation.name"] == "chat" and facts["gen_ai.request.model"] == "r2v"
    assert facts["gen_ai.response.model"] == told["x-r2v-model"]
    assert facts["gen_ai.usage.input_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert facts["gen_ai.usage.output_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert (facts["r2v.source"], facts["r2v.reason"]) == (told["x-r2v-arm"], told["x-r2v-reason"])
    assert facts["r2v.score"] == pytest.approx(float(told["x-r2v-risk"]), rel=1e-4)
    assert facts["r2v.threshold"] == pytest.approx(float(told["x-r2v-threshold"]))
    assert facts["r2v.cost_usd"] == pytest.approx(float(told["x-r2v-cost-usd"]), rel=1e-4) and facts["r2v.cost_usd"] > 0
    assert facts["r2v.decision_id"] == told["x-r2v-decision-id"] and facts["r2v.mode"] == "active"
    assert facts["r2v.route"] in ("continue", "escalate") and "error.type" not in facts
    assert facts["gen_ai.conversation.id"].endswith("/s1") and KEY not in facts["gen_ai.conversation.id"]
    calls = [span for span in got.spans if span.parent_span_id == step.span_id]
    assert calls and {span.trace_id for span in calls} == {step.trace_id}
    slm = next(span for span in calls if of(span)["r2v.role"] == "slm")
    assert slm.kind == slm.SPAN_KIND_CLIENT and slm.name == "chat small-1"
    assert of(slm)["gen_ai.request.choice.count"] == 3 and of(slm)["gen_ai.provider.name"] == "openai"
    assert of(slm)["server.address"] == "127.0.0.1" and of(slm)["gen_ai.usage.output_tokens"] > 0
    assert step.start_time_unix_nano <= slm.start_time_unix_nano <= slm.end_time_unix_nano <= step.end_time_unix_nano
    other = next(span for span in got.spans if of(span).get("gen_ai.request.model") == "r2v:teacher")
    assert not other.parent_span_id and other.trace_id != step.trace_id and of(other)["r2v.reason"] == "forced"
    about = of(got.traces[0].resource_spans[0].resource)
    assert about["service.name"] == "r2v" and about["service.instance.id"]


def test_metrics_are_those_of_the_conventions(world):
    with collector() as got, world(telemetry={"otlp": got.url}) as (client, *_):
        answers = [ask(client, {"x-r2v-session-id": f"s{i}"}) for i in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    calls = [span for span in got.spans if span.kind == span.SPAN_KIND_CLIENT]
    times = [point for name, point in got.points if name == "gen_ai.client.operation.duration"]
    assert sum(point.count for point in times) == len(calls) >= 3
    assert {(point.explicit_bounds[0], len(point.explicit_bounds)) for point in times} == {(0.01, 14)}
    usage = [(of(point), point) for name, point in got.points if name == "gen_ai.client.token.usage"]
    small = {about["gen_ai.token.type"]: point for about, point in usage if about["gen_ai.request.model"] == "small-1"}
    assert list(small["input"].explicit_bounds) == [4.0**i for i in range(14)]
    for kind in ("input", "output"):
        spent = [of(span)[f"gen_ai.usage.{kind}_tokens"] for span in calls if of(span)["gen_ai.request.model"] == "small-1"]
        assert small[kind].sum == sum(spent) > 0 and small[kind].count == len(spent)


def test_nothing_that_was_said_and_no_key_is_sent(world, monkeypatch, capfd):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=for-the-collector")
    small = Model("small-1")
    small.says = "swordfish it is"
    with collector() as got, world(small, telemetry={"otlp": got.url, "propagate": True}) as (client, _, teacher):
        assert ask(client, {"x-r2v-session-id": f"Bearer {SECRET}"}).status_code == 200
        ask(client, {"tracestate": f"a={SECRET}", "traceparent": f"00-{TRACE}-{PARENT}-01"}, stream=True)
        ask(client, user="joe@example.com", metadata={"session_id": "swordfish@example.com"})
        teacher.status = [(401, {})]
        assert ask(client, model="r2v:teacher").status_code >= 400  # its error has words of the model
    sent = b"".join(got.raw)
    assert len(got.spans) >= 8 and len(got.metrics) >= 1
    for secret in ("swordfish", "password", "blue house", "be brief", SECRET, KEY, "joe", "example.com", "made-up"):
        assert secret.encode() not in sent, secret
    assert all(headers["x-token"] == "for-the-collector" for headers in got.headers)
    assert "for-the-collector" not in capfd.readouterr().err


def test_errors_have_a_type_and_no_words(world):
    with collector() as got, world(telemetry={"otlp": got.url}) as (client, small, teacher):
        small.status = teacher.status = [(500, {})]
        assert ask(client).status_code == 502
    (step,) = [span for span in got.spans if span.kind == span.SPAN_KIND_SERVER]
    assert of(step)["error.type"] == "upstream_fallback" and step.status.code == step.status.STATUS_CODE_ERROR
    calls = [span for span in got.spans if span.kind == span.SPAN_KIND_CLIENT]
    assert {of(span)["error.type"] for span in calls} == {"ModelError"} and {of(span)["r2v.role"] for span in calls} == {
        "slm", "teacher",
    }  # fmt: skip
    assert not any(span.events or span.status.message for span in got.spans)
    assert {of(point)["error.type"] for _, point in got.points} == {"ModelError"}


def test_a_refused_step_is_a_span_too(world):
    with collector() as got:
        limits = {"session": {"teacher_calls": 0}, "on_exhaustion": "stop"}
        with world(telemetry={"otlp": got.url}, budget=limits) as (client, *_):
            assert ask(client).status_code == 402
    (step,) = got.spans
    assert of(step)["error.type"] == of(step)["r2v.reason"] == "budget_exhausted" and of(step)["r2v.decision_id"]


def test_the_models_get_the_trace_only_where_that_is_wanted(world):
    with collector() as got, world(telemetry={"otlp": got.url, "propagate": True}) as (client, small, _):
        ask(client, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    slm = next(span for span in got.spans if of(span).get("r2v.role") == "slm")
    assert {headers["traceparent"] for headers in small.headers} == {f"00-{TRACE}-{slm.span_id.hex()}-01"}


def test_the_environment_says_where_and_who(world, monkeypatch):
    with collector() as got:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "router-eu")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
        with world(telemetry={}) as (client, *_):
            assert ask(client).status_code == 200
    about = of(got.traces[0].resource_spans[0].resource)
    assert (about["service.name"], about["deployment.environment.name"]) == ("router-eu", "prod")


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_steps_go_on_without_a_collector_and_memory_is_bounded(world, monkeypatch, kind):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setattr("r2v.gateway.telemetry.CLOSE_S", 0.2)
    with collector() as got:
        got.wait_s = 1.0
        url = got.url if kind == "silent" else f"http://127.0.0.1:{free_port()}"
        with world(telemetry={"otlp": url}) as (client, *_):
            answers = [ask(client, {"x-r2v-session-id": f"s{i}"}) for i in range(20)]
            assert [answer.status_code for answer in answers] == [200] * 20
        begun = len(got.spans)
        assert begun <= 8 + 8  # of at least 40: what found no room is dropped


def test_the_end_waits_for_no_collector(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setattr("r2v.gateway.telemetry.CLOSE_S", 0.2)

    async def closed(telemetry: Telemetry) -> None:
        async with asyncio.timeout(20):  # left alone, OpenTelemetry waits for half a minute
            await telemetry.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        telemetry = Telemetry(TelemetrySettings(otlp=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        telemetry._tracer.start_span("chat").end()
        asyncio.run(closed(telemetry))


def test_without_telemetry_nothing_of_it_is_loaded(tmp_path):
    import subprocess

    code = "import sys, r2v.gateway.serve; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_wrong_is_said_in_one_line(host, tmp_path, monkeypatch):
    with pytest.raises((SettingsError, ValueError), match=r"telemetry\.otlp: write a URL such as http://localhost:4318"):
        settings("http://x", "http://x", tmp_path / "l.db", telemetry={"otlp": "http://user:key@collector:4318"})
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("R2V_API_KEY", KEY)
    with pytest.raises(SettingsError, match=r"pip install 'r2v\[otel\]'"):
        Service(settings(host(Model("a")), host(Model("b")), tmp_path / "l.db", telemetry={}))
