"""Whose is what: keys, sessions and secrets. No client reads or moves what belongs to another, and no secret leaves."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from r2v.clients.base import CODES, said_of
from test_gateway import ASK, AUTH, make  # noqa: F401  (a fixture)

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
