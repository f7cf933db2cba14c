"""`Accounts` in Redis: replicas behind any load balancer share sessions, budgets and the kill switch.

Budgets are looked at and taken in one script, which Redis runs alone, so that no two replicas can take the last of one.
What is held back for a step expires when the step can no longer be running: a replica that died gives its part back. Redis
is the truth: run it with `appendonly yes`; without it no step is served (503). Each replica writes a ledger of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import redis.asyncio as redis

from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.accounts import DECISIONS, Exhausted, Limits, Reservation, Session
from r2v.gateway.ledger import Amount

KEPT_S = 14 * 86_400
"""Sessions and budgets nobody used for so long are forgotten."""
_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Decision)

# KEYS: (spent, held) of each scope. ARGV: name, seconds until it expires, tokens and USD of the small model's part, then of
# the teacher's, then the limits (calls, tokens, USD; -1 = none) of each scope. Answers {0 for nothing, 1 for the small
# model, 2 for both; teacher calls left or -1}.
RESERVE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local small, both, left = true, true, -1
for i = 1, #KEYS / 2 do
  local used = {0, 0, 0}
  for j, unit in ipairs({'calls', 'tokens', 'usd'}) do
    used[j] = tonumber(redis.call('HGET', KEYS[2 * i - 1], unit) or 0)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2 * i], '-inf', now)
  for _, member in ipairs(redis.call('ZRANGE', KEYS[2 * i], 0, -1)) do
    local calls, tokens, usd = string.match(member, '^%S+ (%S+) (%S+) (%S+)$')
    used[1], used[2], used[3] = used[1] + tonumber(calls), used[2] + tonumber(tokens), used[3] + tonumber(usd)
  end
  local first = {0, tonumber(ARGV[3]), tonumber(ARGV[4])}
  local second = {1, tonumber(ARGV[5]), tonumber(ARGV[6])}
  for j = 1, 3 do
    local limit = tonumber(ARGV[6 + 3 * (i - 1) + j])
    if limit >= 0 then
      if used[j] + first[j] > limit then small = false end
      if used[j] + first[j] + second[j] > limit then both = false end
      if j == 1 and (left < 0 or limit - used[1] < left) then left = math.max(0, limit - used[1]) end
    end
  end
end
if not small then return {0, left} end
local member = ARGV[1] .. ' 0 ' .. ARGV[3] .. ' ' .. ARGV[4]
if both then member = ARGV[1] .. ' 1 ' .. (ARGV[3] + ARGV[5]) .. ' ' .. (ARGV[4] + ARGV[6]) end
for i = 1, #KEYS / 2 do
  redis.call('ZADD', KEYS[2 * i], now + tonumber(ARGV[2]), member)
  redis.call('EXPIRE', KEYS[2 * i], math.ceil(tonumber(ARGV[2])))
end
return {both and 2 or 1, left}
"""

# KEYS as above. ARGV: name, calls, tokens, USD that were spent, seconds to keep.
SETTLE = """
for i = 1, #KEYS / 2 do
  for _, member in ipairs(redis.call('ZRANGE', KEYS[2 * i], 0, -1)) do
    if string.sub(member, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then redis.call('ZREM', KEYS[2 * i], member) end
  end
  redis.call('HINCRBYFLOAT', KEYS[2 * i - 1], 'calls', ARGV[2])
  redis.call('HINCRBYFLOAT', KEYS[2 * i - 1], 'tokens', ARGV[3])
  redis.call('HINCRBYFLOAT', KEYS[2 * i - 1], 'usd', ARGV[4])
  redis.call('EXPIRE', KEYS[2 * i - 1], ARGV[5])
end
"""


class RedisAccounts:
    """See `r2v.gateway.accounts.Accounts`; every method raises OSError where Redis does not answer or refuses."""

    def __init__(self, url: str, *, cache_ttl_s: float, longest_step_s: float, prefix: str = "r2v") -> None:
        """`longest_step_s`: after that nothing of a step is running any more."""
        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self._ttl_s, self._longest_s, self._prefix = cache_ttl_s, longest_step_s, prefix

    async def _do(self, *commands: Sequence[Any]) -> list[Any]:
        """The answers to commands that Redis runs in one go."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute()
        except redis.RedisError as error:
            raise OSError(f"Redis: {error}") from error

    def _key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}:{kind}:{name}"

    async def enter(self, identity: str, *, dry: bool) -> Session:
        session, decisions, warm, signatures = (
            self._key(kind, identity) for kind in ("session", "decisions", "warm", "signatures")
        )
        steps, tokens, told, is_warm, signed, *_ = await self._do(
            ("HINCRBY", session, "steps", 0 if dry else 1),
            ("HGET", session, "prompt_tokens"),
            ("LRANGE", decisions, 0, -1),
            ("EXISTS", warm),
            ("HGETALL", signatures),
            *(("EXPIRE", key, KEPT_S) for key in (session, decisions, signatures)),
        )
        memory = Memory(seed=derive_seed(identity, "episode"), decisions=tuple(_decoder.decode(raw) for raw in told))
        known = {name.decode(): model.decode() for name, model in signed.items()}
        return Session(identity, int(steps) - (not dry), memory, not is_warm, int(tokens or 0), known)

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        warm = ("SET", self._key("warm", session.id), 1, "PX", max(1, int(1000 * self._ttl_s)))
        await self._do(
            ("RPUSH", self._key("decisions", session.id), _encoder.encode(decision)),
            ("LTRIM", self._key("decisions", session.id), -DECISIONS, -1),
            ("HSET", self._key("session", session.id), "prompt_tokens", tokens),
            *([warm] if teacher else []),
        )

    async def sign(self, session: Session, signature: str, model: str) -> None:
        await self._do(("HSET", self._key("signatures", session.id), signature, model))

    async def hold(self, name: str, limits: Limits, small: Amount, teacher: Amount) -> Reservation:
        if not limits:
            return Reservation(name, limits, small + teacher, True, None)
        bounds = [-1 if x is None else x for _, limit in limits for x in (limit.teacher_calls, limit.tokens, limit.usd)]
        amounts = (small.tokens, small.usd, teacher.tokens, teacher.usd)
        scopes = self._scopes(limits)
        ((granted, left),) = await self._do(
            ("EVAL", RESERVE, len(scopes), *scopes, name, self._longest_s, *amounts, *bounds)
        )
        if granted == 0:
            raise Exhausted
        amount = small + teacher if granted == 2 else small
        return Reservation(name, limits, amount, granted == 2, None if left < 0 else int(left))

    async def settle(self, hold: Reservation, spent: Amount) -> None:
        if hold.limits:
            scopes = self._scopes(hold.limits)
            amounts = (spent.calls, spent.tokens, spent.usd)
            await self._do(("EVAL", SETTLE, len(scopes), *scopes, hold.id, *amounts, KEPT_S))

    def _scopes(self, limits: Limits) -> list[str]:
        return [self._key(kind, scope) for scope, _ in limits for kind in ("spent", "held")]

    async def kill(self, on: bool) -> None:
        await self._do(("SET", self._key("killed"), 1) if on else ("DEL", self._key("killed")))

    async def killed(self) -> bool:
        return bool((await self._do(("EXISTS", self._key("killed"))))[0])

    async def close(self) -> None:
        await self._redis.aclose()
