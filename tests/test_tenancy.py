"""Whose is what: keys, sessions and secrets. No client reads or moves what belongs to another, and no secret leaves."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing

import httpx
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.server_errors import CODES, said_of
from r2v.gateway.keys import made_key
from r2v.gateway.settings import LimitSettings
from servers import Model, gateway, settings
from test_gateway import ASK, make  # noqa: F401  (a fixture)

# -- secrets ------------------------------------------------------------------------------------------------------

BODY = "".join(chr(97 + i * 7 % 26) for i in range(40))
SECRETS = [
    f"sk-{BODY}", f"sk-proj-{BODY}", f"sk-ant-api03-{BODY}", f"sk-or-v1-{BODY}", f"sk_live_{BODY}", f"rk_live_{BODY}",
    f"ghp_{BODY[:36]}", f"gho_{BODY[:36]}", f"github_pat_{BODY}", f"glpat-{BODY[:20]}", f"AKIA{BODY[:16].upper()}",
    f"ASIA{BODY[:16].upper()}", f"AIza{BODY[:35]}", f"ya29.{BODY}", f"xoxb-1234-{BODY}", f"xapp-1-{BODY}", f"hf_{BODY[:34]}",
    f"npm_{BODY[:36]}", f"pypi-{BODY}", f"dop_v1_{BODY}", f"SG.{BODY[:22]}.{BODY}", f"key-{BODY[:32]}", f"gsk_{BODY}",
    f"pplx-{BODY}", f"r8_{BODY[:37]}", f"tgp_v1_{BODY}", f"eyJhbGciOiJIUzI1NiJ9.{BODY}.{BODY}", f"Bearer {BODY}",
    f"postgres://user:{BODY}@db.example.com/x", f"-----BEGIN PRIVATE KEY-----{BODY}", BODY.encode().hex(), "hunter2 correct",
]  # fmt: skip


def everything(world) -> str:
    """All that a gateway shows or keeps, but for the texts of a ledger that keeps texts."""
    shown = [world.client.get(path).text for path in ("/v1/stats", "/v1/sessions", "/metrics", "/ready")]
    shown += [world.client.get(f"/v1/sessions/{one['session']}").text for one in json.loads(shown[1])["sessions"]]
    with closing(sqlite3.connect(world.ledger)) as db:
        return "\n".join([*shown, *db.iterdump()])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_what_an_upstream_says_of_secrets_goes_nowhere(make, status, caplog, capfd):  # noqa: F811
    world = make(small__retries=0, teacher__retries=0, small__breaker_failures=None, teacher__breaker_failures=None)
    told = ""
    for i, secret in enumerate(SECRETS):
        error = [
            {"message": f"Incorrect API key provided: {secret}", "type": secret, "code": secret, "param": secret},
            f"denied: {secret}",
            {"message": secret, "type": "invalid_request_error", "code": None, "param": f"messages.{secret}"},
        ][i % 3]
        world.small.refuse = world.teacher.refuse = (status, {"error": error, "detail": secret})
        answer = world.post(stream=i % 2 == 0, headers={"x-session-id": f"s{i}"})
        told += answer.text + str(answer.headers)
        assert answer.status_code != 200 or '"error"' in answer.text
    told += everything(world) + caplog.text + "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret in told or json.dumps(secret)[1:-1] in told]


def test_an_error_within_a_stream_is_reduced_too(make):  # noqa: F811
    world = make(small__retries=0, teacher__retries=0)
    secret = SECRETS[2]
    world.small.body = world.teacher.body = f'data: {{"error": {{"message": "bad key {secret}", "code": "x"}}}}\n\n'.encode()
    text = world.post(stream=True, model="r2v:teacher").text
    assert "error" in text and secret not in text + everything(world)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": {"code": "model_not_found", "message": "no such model"}}, " model_not_found"),
        ({"error": {"message": "Unsupported parameter: 'max_tokens'", "code": "unsupported_parameter"}},
         " unsupported_parameter because of `max_tokens`"),
        ({"error": {"type": "invalid_request_error", "message": "max_tokens: 9 > 8"}},
         " invalid_request_error because of `max_tokens`"),
        ({"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum", "type": "invalid_request_error"}},
         " invalid_request_error the prompt is too long: 210000 > 200000 tokens"),
        ({"error": "words"}, ""), ([], ""), (None, ""), ({"error": {"code": ["x"], "param": 5}}, ""),
    ],
)  # fmt: skip
def test_what_is_repeated_of_an_error_is_its_code_and_the_field(answer, said):
    assert said_of(answer, {"max_tokens": 9, "messages": []})[0] == said
    assert "invalid_api_key" in CODES


def test_fields_that_lead_to_another_server_are_not_passed_on(make):  # noqa: F811
    world = make(teacher_provider="anthropic")
    leading = {
        "api_base": "http://evil", "api_key": "k", "base_url": "http://evil", "extra_headers": {}, "API_BASE": "x",
        "custom_llm_provider": "x", "organization": "o", "fallbacks": [], "litellm_metadata": {}, "aws_region_name": "r",
        "x" * 100: 1,
    }  # fmt: skip
    kept = {"temperature": 0.5, "prompt_cache_key": "p", "top_p": 0.9, "metadata": {"api_base": "of the client's own"}}
    answer = world.post(**leading, **kept)
    assert answer.status_code == 200 and not leading.keys() & world.small.seen[-1].keys()
    assert kept.items() <= world.small.seen[-1].items()
    assert {"api_base", "api_key"} <= set(answer.headers["x-r2v-dropped"].split(","))
    said = {"model": "r2v:teacher", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    assert world.post("/v1/messages", said | leading | {"top_k": 3}).status_code == 200
    assert not leading.keys() & world.teacher.seen[-1].keys() and world.teacher.seen[-1]["top_k"] == 3


def test_hashes_of_a_redacted_ledger_are_keyed(make, tmp_path):  # noqa: F811
    world = make(store__redact=True)
    world.post(headers={"x-session-id": "one"})
    ((goal,),) = world.rows("goal")
    secret = world.ledger.with_name(world.ledger.name + ".secret")
    assert goal.startswith("hmac:") and (secret.stat().st_mode & 0o777, len(secret.read_bytes())) == (0o600, 32)
    world.stack.close()
    again = make(store__redact=True)
    again.post(headers={"x-session-id": "two"})
    assert [row[0] for row in again.rows("goal")] == [goal, goal]  # the same after a restart
    other = make(store__redact=True)
    other.post()
    assert other.rows("goal")[0][0] != goal  # nobody can compare it with a guess


# -- keys ---------------------------------------------------------------------------------------------------------

CHAT_BODY = {"model": "r2v", "messages": ASK}
ADMIN_ONLY = [
    ("GET", "/v1/stats", None), ("GET", "/v1/mode", None), ("GET", "/metrics", None), ("POST", "/v1/kill", {"on": True}),
    ("POST", "/v1/mode", {"action": "rollback"}), ("POST", "/v1/mode", {"action": "promote", "force": True}),
    ("POST", "/v1/cleanup", {"keep_days": 1e-9}), ("POST", "/v1/reload", {}),
]  # fmt: skip


@pytest.fixture
def tenants(host, tmp_path):
    """Asks a gateway with two tenants and an admin: (key, method, path, body, headers with _ for -)."""
    config = settings(host(Model("small-1")), host(Model("teacher-1")), tmp_path / "ledger.db")
    with gateway(config, keys="key-of-a,key-of-b", admin="the-admin") as (url, _):

        def ask(key: str, method: str, path: str, body=None, **headers) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.request(
                method, url + path, json=body, headers={"authorization": f"Bearer {key}", **named}, timeout=20
            )

        yield ask


def test_no_tenant_reads_or_writes_what_is_anothers(tenants, tmp_path):
    """With the names of the other's sessions in every place where one can stand."""
    said = "only A says this"
    body = {"model": "r2v", "messages": [{"role": "user", "content": said}]}
    own = tenants("key-of-a", "POST", "/v1/chat/completions", body).headers["x-r2v-session-id"]
    tenants("key-of-a", "POST", "/v1/chat/completions", body, x_session_id="work")
    stored = tenants("key-of-a", "POST", "/v1/responses", {"model": "r2v", "input": said}).json()["id"]

    def rows(what: str) -> list:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
            return [row for (row,) in db.execute(what)]

    full, before = rows("SELECT DISTINCT session FROM steps"), rows("SELECT id FROM steps")
    tenant = full[0].split("/")[0]
    assert own.startswith("auto-") and f"{tenant}/work" in full
    names = [own, "work", *full]
    for name in names:
        assert tenants("key-of-b", "GET", f"/v1/sessions/{name}").status_code == 404
        assert tenants("key-of-b", "POST", "/v1/outcomes", {"session_id": name, "reward": 1}).status_code == 400
    for query in ("", "?text=says", "?before=9e9", "?failed=0", "?mode=active"):
        assert tenants("key-of-b", "GET", f"/v1/sessions{query}").json() == {"sessions": []}
    assert said in tenants("key-of-a", "GET", "/v1/sessions").text
    told = {"model": "r2v", "input": "x", "previous_response_id": stored}
    assert tenants("key-of-b", "POST", "/v1/responses", told).status_code == 400
    assert tenants("key-of-a", "POST", "/v1/responses", told).status_code == 200
    mine = rows(f"SELECT id FROM steps WHERE session LIKE '{tenant}/%'")
    for name in names:  # steps into the other's sessions are steps of one's own
        for header in ("x-session-id", "x-r2v-session-id", "session-id", "thread-id", "x-claude-code-session-id"):
            assert tenants("key-of-b", "POST", "/v1/chat/completions", CHAT_BODY, **{header: name}).status_code == 200
        for more in ({"metadata": {"session_id": name}}, {"prompt_cache_key": name}):
            assert tenants("key-of-b", "POST", "/v1/chat/completions", CHAT_BODY | more).status_code == 200
    assert len(before) == 3 and rows(f"SELECT id FROM steps WHERE session LIKE '{tenant}/%'") == mine
    assert not rows("SELECT session FROM outcomes")


def test_what_concerns_everybody_takes_the_admin(tenants):
    tenants("key-of-a", "POST", "/v1/chat/completions", CHAT_BODY, x_session_id="work")
    for key, status in (("key-of-a", 403), ("key-of-b", 403), ("nobody", 401), ("-", 401)):
        for method, path, body in ADMIN_ONLY:
            assert tenants(key, method, path, body).status_code == status, (key, path)
    assert not tenants("the-admin", "GET", "/v1/stats").json()["killed"]
    assert tenants("the-admin", "GET", "/v1/mode").json()["mode"] == "active"
    (listed,) = tenants("the-admin", "GET", "/v1/sessions").json()["sessions"]
    assert tenants("the-admin", "GET", f"/v1/sessions/{listed['session']}").json()["session_id"] == "work"
    assert tenants("the-admin", "POST", "/v1/outcomes", {"session_id": listed["session"], "reward": 1}).status_code == 200
    for method, path, body in ADMIN_ONLY:
        assert tenants("the-admin", method, path, body).status_code in (200, 409), path


@pytest.mark.parametrize("command", [("list",), ("rotate", "ci"), ("revoke", "ci")])
def test_keys_of_no_ledger_are_one_line_and_make_none(command, refused, tmp_path):
    config, ledger = tmp_path / "r2v.yaml", tmp_path / "none" / "ledger.db"
    model = {"base_url": "http://x", "model": "m", "price": {"input": 1, "output": 1}}
    config.write_text(json.dumps({"version": 1, "models": {"slm": model, "teacher": model}, "store": {"path": str(ledger)}}))
    assert f"there is no ledger {ledger}" in refused("keys", *command, "--config", config)
    assert not ledger.parent.exists()


def test_keys_are_made_listed_rotated_and_revoked_while_the_gateway_runs(tenants, tmp_path):
    config = tmp_path / "r2v.yaml"
    model = {"base_url": "http://x", "model": "m", "price": {"input": 1, "output": 1}}
    ledger = tmp_path / "ledger.db"
    config.write_text(json.dumps({"version": 1, "models": {"slm": model, "teacher": model}, "store": {"path": str(ledger)}}))

    def run(*arguments: str) -> str:
        found = CliRunner().invoke(cli, ["keys", *arguments, "--config", str(config)], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    def steps(key: str, body: dict | None = None, **headers) -> int:
        return tenants(key, "POST", "/v1/chat/completions", CHAT_BODY | (body or {}), **headers).status_code

    key = run("create", "ci", "--owner", "team", "--calls-per-day", "1", "--model", "r2v*").split()[1]
    wide = run("create", "lead", "--owner", "team", "--scope", "outcomes", "--scope", "agent", "--overrides").split()[1]
    boss = run("create", "boss", "--scope", "admin").split()[1]
    assert key not in run("list") and "ci" in run("list") and "1 teacher_calls" in run("list")
    with closing(sqlite3.connect(ledger)) as db:
        assert key not in "\n".join(db.iterdump())
    time.sleep(1.1)
    assert steps(key, x_session_id="s") == 200
    assert steps(key, {"model": "gpt-5"}) == 403  # not one of its models
    for body, headers in (
        ({"model": "r2v:teacher"}, {}), ({}, {"x_r2v_arm": "slm"}), ({"model": "r2v@tau=-5"}, {}),
        ({}, {"x_r2v_mode": "shadow"}),
    ):  # fmt: skip
        assert (steps(key, body, **headers), steps(wide, body, **headers)) == (403, 200)
    assert tenants(wide, "GET", "/v1/sessions/s").status_code == 200  # the same owner
    assert tenants("key-of-a", "GET", "/v1/sessions/s").status_code == 404
    assert tenants(boss, "POST", "/v1/kill", {"on": False}).status_code == 200
    assert tenants(wide, "POST", "/v1/kill", {"on": False}).status_code == 403
    renewed = run("rotate", "ci", "--grace", "60").split()[1]
    time.sleep(1.1)
    assert (steps(key), steps(renewed)) == (200, 200)
    third = run("rotate", "ci").split()[1]
    time.sleep(1.1)
    assert (steps(key), steps(renewed), steps(third)) == (401, 401, 200)
    run("revoke", "ci")
    time.sleep(1.1)
    assert steps(third) == 401


def test_a_key_has_a_budget_of_its_own(host, tmp_path):
    small, teacher = Model("small-1"), Model("teacher-1")
    config = settings(host(small), host(teacher), tmp_path / "ledger.db", route__router="verifier", route__threshold=0.0)
    with gateway(config, keys="one,two", admin="") as (url, service):
        key, stored = made_key("ci", "ci", ["agent"], ["*"], False, LimitSettings(teacher_calls=2))
        asyncio.run(service.ledger.keys.put(stored))
        answers = [
            httpx.post(f"{url}/v1/chat/completions", json=CHAT_BODY, headers={"authorization": f"Bearer {one}"})
            for one in [key] * 4 + ["one"] * 3
        ]
    assert [answer.headers["x-r2v-arm"] for answer in answers] == ["teacher"] * 2 + ["slm"] * 2 + ["teacher"] * 3


def test_a_key_alone_may_do_everything_and_several_may_not(host, tmp_path):
    config = settings(host(Model("small-1")), host(Model("teacher-1")), tmp_path / "ledger.db")
    for keys, status in (("one", 200), ("one,two", 403)):
        with gateway(config, keys=keys, admin="") as (url, _):
            assert httpx.get(f"{url}/v1/stats", headers={"authorization": "Bearer one"}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"host": "localhost:8321"}, 200), ({"host": "evil.example.com"}, 403),
        ({"host": "127.0.0.1.evil.com"}, 403),
        ({"origin": "https://evil.example.com"}, 403), ({"origin": "null"}, 403), ({"origin": "http://localhost:9"}, 403),
        ({"host": "localhost:9", "origin": "http://localhost:9"}, 200),
    ],
)  # fmt: skip
def test_without_keys_only_this_machine_is_answered(make, headers, status):  # noqa: F811
    world = make(server__require_key=False)
    for path in ("/v1/stats", "/v1/sessions", "/v1/models"):
        assert httpx.get(world.url + path, headers=headers).status_code == status
    assert httpx.post(f"{world.url}/v1/chat/completions", json=CHAT_BODY, headers=headers).status_code == status


@pytest.mark.parametrize("name", ["alice@example.com", *SECRETS[:24]])
def test_names_of_sessions_that_say_too_much_are_hashed(make, name):  # noqa: F811
    world = make()
    shown = world.post(headers={"x-session-id": name}).headers["x-r2v-session-id"]
    assert shown.startswith("h-") and world.post(headers={"x-session-id": name}).headers["x-r2v-session-id"] == shown
    assert name not in everything(world)


@pytest.mark.parametrize("name", ["sketch-of-a-session-1234", "019ac3e2-5b1f-7d3e-9a51-0a2f7c", "team/agent.7:run-12345678"])
def test_other_names_of_sessions_stay(make, name):  # noqa: F811
    assert make().post(headers={"x-session-id": name}).headers["x-r2v-session-id"] == name
