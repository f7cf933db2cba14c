"""What deploys the gateway: the tools that read these files accept them, and what they name exists in the gateway."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import compose_spec
import httpx
import kubernetes_validate
import numpy as np
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from r2v.core.features import EXTENDED
from r2v.core.mlp import RiskMLP
from r2v.gateway.settings import GatewaySettings
from r2v.routers.r2v import R2V
from r2v.runtime.settings import validated
from servers import KEY, Model, gateway, settings

ROOT = Path(__file__).parents[1]
DEPLOY, CHART = ROOT / "deploy", ROOT / "deploy/helm/r2v"
KUBERNETES = ("1.29", "1.34")
LATER = {"r2v_unshipped_rows", "r2v_unshipped_seconds"}
"""Metrics of a gateway whose ledger is in Postgres."""


def ran(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- image and compose file -------------------------------------------------------------------------------------------


def test_the_dockerfile_is_as_hadolint_wants_it_and_runs_as_nobody():
    tool = shutil.which("hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    ran(tool, "--failure-threshold", "style", ROOT / "Dockerfile")
    text = (ROOT / "Dockerfile").read_text()
    build, last = text.split("\nFROM ")[1:]
    assert "nonroot" in last.splitlines()[0] and "USER 65532:65532" in last and "RUN " not in last
    assert "STOPSIGNAL SIGTERM" in last and "HEALTHCHECK" in last
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", build)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_the_image_gets_what_the_build_copies_and_nothing_else():
    allowed = {line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {name for names in copied for name in names.split()} == allowed
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.fixture(scope="module")
def compose() -> dict:
    text = (DEPLOY / "compose.yaml").read_text()
    plain = yaml.safe_dump(yaml.safe_load(text))  # without merge keys, of which the reader takes one level
    # Nor does it know Docker's own name for the address of the host.
    read = compose_spec.PyCompose.from_yaml(plain.replace(":host-gateway", ":127.0.0.1"))
    for part in ("secrets", "networks", "volumes", "configs"):
        getattr(read, f"validate_{part}")()
    return yaml.safe_load(text)


def test_the_compose_file_is_one_and_every_service_is_hardened(compose):
    services = compose["services"]
    assert set(services) == {"gateway-1", "gateway-2", "nginx", "redis", "postgres", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and ":" in service["image"], name
        assert "healthcheck" in service or service["image"].startswith("r2v:"), name  # the image has its own
        for there in service.get("depends_on", {}):
            assert there in services
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in compose["volumes"], volume
    assert services["gateway-1"]["volumes"] != services["gateway-2"]["volumes"]  # a journal each
    assert [name for name, service in services.items() if "ports" in service] == ["nginx", "grafana"]
    assert "--appendonly yes" in services["redis"]["command"][-1]


def test_secrets_come_from_a_file_that_is_not_committed(compose):
    text = (DEPLOY / "compose.yaml").read_text()
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", text)) == set(values) and not any(values.values())
    assert subprocess.run(["git", "check-ignore", "-q", "deploy/.env"], cwd=ROOT).returncode == 0
    config = validated(GatewaySettings, yaml.safe_load((DEPLOY / "r2v.yaml").read_text()))
    wanted = {config.server.key_env, config.server.admin_key_env, *_environment_of(config)}
    assert wanted <= set(compose["services"]["gateway-1"]["environment"])


def _environment_of(config: GatewaySettings) -> set[str]:
    """Variables that settings name."""
    named = [getattr(config.store, key) for key in ("url_env", "redis_env", "hash_key_env")]
    return {name for name in (*named, *(model.api_key_env for model in config.models.values())) if name}


@pytest.fixture
def instant(host, tmp_path):
    """Runs gateways with a router of the fitted kind."""
    sizes, ones = (len(EXTENDED), 4, 1), np.ones(len(EXTENDED))
    layers = [(np.zeros((a, b)), np.zeros(b)) for a, b in pairwise(sizes)]
    R2V(threshold=0.6, risk=RiskMLP(EXTENDED, 0 * ones, ones, tuple(layers))).save(tmp_path / "router")
    with ExitStack() as stack:

        def run(name: str) -> str:
            config = settings(
                host(Model("small-1")), host(Model("teacher-1")), tmp_path / f"{name}.db", small__offers_n=True,
                route={"k": 2, "router": str(tmp_path / "router")},
                budget={"session": {"teacher_calls": 0}, "on_exhaustion": "stop"} if name == "poor" else {},
            )  # fmt: skip
            return stack.enter_context(gateway(config))[0]

        yield run


ASK = {"model": "r2v", "messages": [{"role": "user", "content": "look"}]}
AUTH = {"authorization": f"Bearer {KEY}"}


def test_nginx_spreads_steps_and_goes_on_without_a_gateway(instant, tmp_path):
    urls = [instant("a"), instant("b")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (
        (DEPLOY / "nginx.conf")
        .read_text()
        .replace("listen 8321", f"listen 127.0.0.1:{port}")
        .replace("/tmp/", f"{tmp_path}/")
    )
    for i, url in enumerate(urls):
        text = text.replace(f"gateway-{i + 1}:8321", url.removeprefix("http://"))
    with socket.socket() as nobody:  # a gateway that is gone
        nobody.bind(("127.0.0.1", 0))
        text = text.replace("keepalive 64;", f"server 127.0.0.1:{nobody.getsockname()[1]}; keepalive 64;")
        (tmp_path / "nginx.conf").write_text(text)
        server = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf", "-g", "daemon off;", "-e", "stderr"])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=AUTH, timeout=20) as client:
                client = _once_it_listens(client)
                answers = [client.post("/v1/chat/completions", json=ASK) for _ in range(8)]
                assert {answer.status_code for answer in answers} == {200}
                assert b"[DONE]" in client.post("/v1/chat/completions", json={**ASK, "stream": True}).content
                assert client.get("/metrics").status_code == 404
        finally:
            server.terminate()
            server.wait()
    for url in urls:
        text = httpx.get(f"{url}/metrics", headers=AUTH).text
        assert float(re.search(r'^r2v_requests_total\{arm="slm"\} (\S+)', text, re.M)[1]) > 0


def _once_it_listens(client: httpx.Client) -> httpx.Client:
    for _ in range(500):
        try:
            client.get("/health")
            return client
        except httpx.ConnectError:
            time.sleep(0.02)
    raise AssertionError("nginx does not listen")


# -- dashboard and alerts -----------------------------------------------------------------------------------------------


@pytest.fixture
def exposed(instant) -> dict[str, set[str]]:
    """Metric -> labels, of a real answer: a gateway with steps, outcomes and a refused step."""
    found: dict[str, set[str]] = {}
    for name in ("rich", "poor"):
        with httpx.Client(base_url=instant(name), headers=AUTH, timeout=20) as client:
            for i in range(2):
                client.post("/v1/chat/completions", json=ASK, headers={"x-r2v-session-id": f"s{i}"})
                client.post("/v1/outcomes", json={"session_id": f"s{i}", "reward": i})
            for line in client.get("/metrics").text.splitlines():
                if not line.startswith("#"):
                    metric, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
                    found.setdefault(metric, set()).update(re.findall(r'(\w+)="', labels or ""))
    return found


def _used(expression: str) -> tuple[set[str], set[str]]:
    """Metrics and labels that an expression names."""
    labels = re.findall(r'(\w+)\s*[=!]~?\s*"', expression)
    for names in re.findall(r"\bby \(([^)]*)\)", expression):
        labels += re.findall(r"\w+", names)
    return set(re.findall(r"\br2v_\w+", expression)), set(labels) - {"job", "instance"}


def _expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries = [one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    return [*targets, *queries, *(rule["expr"] for rule in rules)]


def test_every_metric_and_label_of_dashboard_and_alerts_is_exposed(exposed):
    seen: set[str] = set()
    for expression in _expressions():
        metrics, labels = _used(expression)
        assert metrics <= set(exposed) | LATER, expression
        assert labels <= {label for metric in metrics for label in exposed.get(metric, ())}, expression
        seen |= metrics
    assert seen >= {"r2v_requests_total", "r2v_decisions_total", "r2v_overhead_seconds_bucket", "r2v_drift_score"}
    of_histograms = {name.removesuffix("_bucket") for name in exposed if name.endswith("_bucket")}
    assert of_histograms == {"r2v_overhead_seconds", "r2v_model_seconds"}
    assert all(
        {f"{name}_sum", f"{name}_count"} <= set(exposed) and "le" in exposed[f"{name}_bucket"] for name in of_histograms
    )


def test_the_dashboard_is_one_for_grafana():
    """Grafana's own classes read it, and write it again without a loss: they drop what they do not know."""
    raw = json.loads((DEPLOY / "grafana.json").read_text())
    assert not list(_lost(raw, _as_grafana_reads_it(raw)))
    wrong = copy.deepcopy(raw)
    wrong["panels"][1]["targets"][0]["exprr"] = wrong["panels"][1]["gridPos"]["wide"] = 1
    assert len(list(_lost(wrong, _as_grafana_reads_it(wrong)))) == 2
    ids = [panel["id"] for panel in raw["panels"]]
    assert len(set(ids)) == len(ids) and all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in raw["panels"])


def _as_grafana_reads_it(raw: dict) -> dict:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(raw)))


def _lost(before, after, path=""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _lost(value, after[key], f"{path}.{key}") if key in after else [f"{path}.{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _lost(one, other, f"{path}[{i}]")
    elif before != after:
        yield path


def test_prometheus_reads_its_settings_and_every_expression(tmp_path):
    shutil.copy(DEPLOY / "alerts.yaml", tmp_path)
    shutil.copy(DEPLOY / "prometheus.yml", tmp_path)
    ran("promtool", "check", "config", "--syntax-only", tmp_path / "prometheus.yml")
    ran("promtool", "check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "alerts.yaml")
    expressions = [text.replace("$__rate_interval", "5m") for text in _expressions() if not text.startswith("label_values")]
    rules = [{"record": f"r2v:{i}", "expr": text} for i, text in enumerate(expressions)]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in ran("promtool", "check", "rules", tmp_path / "all.yaml")


SERIES = [
    ('up{job="r2v", instance="a"}', "0x10"),
    ('r2v_upstream_available{job="r2v", instance="a", model="teacher"}', "0x10"),
    ('r2v_refusals_total{job="r2v", instance="a", reason="store"}', "0+30x10"),
    ('r2v_refusals_total{job="r2v", instance="a", reason="budget_exhausted"}', "0+30x10"),
    ('r2v_drift_score{job="r2v", instance="a"}', "2x40"),
    ('r2v_unshipped_seconds{job="r2v", instance="a"}', "400x10"),
    ('r2v_overhead_seconds_bucket{job="r2v", le="0.1"}', "0+1x20"),
    ('r2v_overhead_seconds_bucket{job="r2v", le="0.5"}', "0+60x20"),
    ('r2v_overhead_seconds_bucket{job="r2v", le="+Inf"}', "0+60x20"),
]


def test_every_alert_fires_when_it_should_and_not_in_good_times(tmp_path):
    names = [rule["alert"] for rule in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]]
    at = {"R2VDrift": "35m", "R2VOverhead": "18m"}

    def firing(series: list[tuple[str, str]]) -> set[str]:
        """What promtool names where nothing is expected to fire."""
        expected = [{"eval_time": at.get(name, "9m"), "alertname": name, "exp_alerts": []} for name in names]
        rows = [{"series": name, "values": values} for name, values in series]
        tests = [{"interval": "1m", "input_series": rows, "alert_rule_test": expected}]
        file = {"rule_files": [str(DEPLOY / "alerts.yaml")], "evaluation_interval": "1m", "tests": tests}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(file))
        done = subprocess.run(["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
        found = {name for name in names if f"alertname: {name}" in done.stderr}
        assert (done.returncode == 0) == (not found), done.stderr
        return found

    good = [(name, "1x40" if name.startswith("up") or "available" in name else "0x40") for name, _ in SERIES]
    assert firing(good) == set()
    assert firing(SERIES) == set(names)


# -- Helm -----------------------------------------------------------------------------------------------------------------


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Chart:
    """Renders the few things that the templates use of Helm: there is no package of Helm itself to test with."""

    def __init__(self, **changes) -> None:
        self.values = yaml.safe_load((CHART / "values.yaml").read_text())
        for path, value in changes.items():
            *groups, key = path.split("__")
            at = self.values
            for group in groups:
                at = at[group]
            assert key in at
            at[key] = value
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.scope = {
            "Values": self.values,
            "Release": {"Name": "prod", "Namespace": "agents"},
            "Chart": {"AppVersion": chart["appVersion"]},
        }
        self.texts = {path.name: self._render(path.read_text()) for path in sorted((CHART / "templates").iterdir())}
        documents = [yaml.safe_load_all(text) for name, text in self.texts.items() if name.endswith(".yaml")]
        self.objects = [document for found in documents for document in found if document]

    def _value(self, expression: str):
        first, *steps = (word.strip() for word in expression.split("|"))
        name = first.removeprefix("toYaml ")
        value = self.scope
        for key in name.strip().lstrip(".").split("."):
            value = value[key]
        if first.startswith("toYaml "):
            value = yaml.safe_dump(value, width=10_000).rstrip("\n")
        for step in steps:
            word, *given = step.split()
            if word == "nindent":
                value = "\n" + "\n".join(" " * int(given[0]) + line for line in value.splitlines())
            else:
                value = {"quote": json.dumps, "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest()}[word](
                    value
                )
        return value

    def _render(self, text: str) -> str:
        written, shown = "", [True]
        text = re.sub(r"\s*\{\{-", "{{", text)
        for i, part in enumerate(re.split(r"\{\{(.*?)\}\}", text)):
            if i % 2 == 0:
                written += part if all(shown) else ""
                continue
            word, _, rest = part.strip().partition(" ")
            if word == "if":
                rest, no = rest.removeprefix("not "), rest.startswith("not ")
                shown.append(bool(self._value(rest)) != no)
            elif word == "end":
                shown.pop()
            elif all(shown):
                written += str(self._value(part.strip()))
        assert shown == [True]
        return written

    def one(self, kind: str) -> dict:
        return next(found for found in self.objects if found["kind"] == kind)


@pytest.mark.parametrize("changes", [
    {},
    {"autoscaling__enabled": False, "journal__storageClass": "fast", "imagePullSecrets": [{"name": "registry"}]},
    {"volumes": [{"name": "router", "emptyDir": {}}], "volumeMounts": [{"name": "router", "mountPath": "/router"}],
     "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a", "operator": "Exists"}], "podAnnotations": {"a": "b"}},
])  # fmt: skip
def test_the_chart_renders_to_what_kubernetes_knows(changes):
    chart = Chart(**changes)
    kinds = [found["kind"] for found in chart.objects]
    scaled = ["HorizontalPodAutoscaler"] if chart.values["autoscaling"]["enabled"] else []
    assert sorted(kinds) == sorted(["ConfigMap", "PodDisruptionBudget", "Service", "Service", "StatefulSet", *scaled])
    for version in KUBERNETES:
        for found in chart.objects:
            kubernetes_validate.validate(found, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**chart.one("StatefulSet"), "spec": {"serviceNam": "x"}}, KUBERNETES[0], strict=True)


def test_a_pod_is_hardened_and_takes_its_secrets_by_reference():
    chart = Chart()
    stateful = chart.one("StatefulSet")["spec"]
    assert "replicas" not in stateful and Chart(autoscaling__enabled=False).one("StatefulSet")["spec"]["replicas"] == 2
    pod = stateful["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    safe = container["securityContext"]
    assert (
        safe["readOnlyRootFilesystem"] and not safe["allowPrivilegeEscalation"] and safe["capabilities"] == {"drop": ["ALL"]}
    )
    assert container["envFrom"] == [{"secretRef": {"name": "r2v"}}] and "env" not in container
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} | claims and claims == {"journal"}
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= container.keys()
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    labels = stateful["template"]["metadata"]["labels"]
    selectors = [stateful["selector"]["matchLabels"], chart.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selectors += [found["spec"]["selector"] for found in chart.objects if found["kind"] == "Service"]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert stateful["serviceName"] in {found["metadata"]["name"] for found in chart.objects if found["kind"] == "Service"}
    assert (
        chart.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == chart.one("StatefulSet")["metadata"]["name"]
    )


def test_changed_settings_start_the_pods_anew():
    def mark(chart: Chart) -> str:
        return chart.one("StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    assert mark(Chart()) == mark(Chart(replicas=5)) != mark(Chart(settings__route={"mode": "active"}))


def test_a_monitor_finds_each_gateway_once():
    chart = Chart(serviceMonitor__enabled=True)
    wanted = chart.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [found for found in chart.objects if found["kind"] == "Service"]
    assert len([found for found in services if wanted.items() <= found["metadata"]["labels"].items()]) == 1


def test_the_chart_serves_settings_that_the_gateway_takes():
    values = yaml.safe_load(Chart().one("ConfigMap")["data"]["r2v.yaml"])
    config = validated(GatewaySettings, values)
    assert (config.server.host, config.store.path) == ("0.0.0.0", "/data/journal.db")
    named = re.findall(r"--from-literal=(\w+)=", (CHART / "values.yaml").read_text())
    assert {config.server.key_env, config.server.admin_key_env, *_environment_of(config)} == set(named)


# -- systemd ----------------------------------------------------------------------------------------------------------------


def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path):
    text = (DEPLOY / "r2v.service").read_text()
    unit = tmp_path / "r2v.service"
    unit.write_text(text.replace("/opt/r2v/bin/r2v", "/bin/true"))  # what is to be run must exist
    assert ran("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit).strip() == ""
    said = ran("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)  # of 100; 20 are 2.0
    assert "OK" in said.splitlines()[-1]
    assert "ExecReload=/bin/kill -HUP $MAINPID" in text
    unit.write_text(text.replace("ProtectHome=", "ProtectHomes="))
    assert "Unknown key" in subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr
