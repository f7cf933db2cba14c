"""Sessions and budgets in Redis: replicas behind any load balancer share them, and the kill switch.

Budgets are checked and taken in one script, which Redis runs alone, so that no two replicas can take the last of one. A
reservation expires when its step can no longer be running: a replica that died gives its part back. Redis is the truth: run
it with `appendonly yes`; without it no step is served (503). Each replica writes a ledger of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import redis.asyncio as redis

from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.budgets import Amount, Exhausted, Limits, Reservation
from r2v.gateway.ledger import ModeChange
from r2v.gateway.sessions import DECISIONS, Session, numbered
from r2v.runtime.upgrade import upgraded_decision

KEPT_S = 14 * 86_400
"""Sessions and budgets that were not used for so long are forgotten."""
_encoder = msgspec.json.Encoder()

# KEYS: (spent, held) of each scope; a member of `held` is a reservation. ARGV: its name, seconds until it expires, tokens
# and USD of the SLM's part, then of the teacher's, then the limits (calls, tokens, USD; -1 = none) of each scope. Answers
# {0 for nothing, 1 for the SLM, 2 for both; teacher calls left or -1}.
RESERVE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local slm, both, left = true, true, -1
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
      if used[j] + first[j] > limit then slm = false end
      if used[j] + first[j] + second[j] > limit then both = false end
      if j == 1 and (left < 0 or limit - used[1] < left) then left = math.max(0, limit - used[1]) end
    end
  end
end
if not slm then return {0, left} end
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


class Connection:
    """Commands to one Redis; every method raises OSError where it does not answer or refuses."""

    def __init__(self, url: str, prefix: str = "r2v") -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self._prefix = prefix

    async def run(self, *commands: Sequence[Any]) -> list[Any]:
        """The answers to commands that Redis runs in one transaction."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute()
        except redis.RedisError as error:
            raise OSError(f"Redis: {error}") from error

    def key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}:{kind}:{name}"

    async def close(self) -> None:
        await self._redis.aclose()


class RedisSessions:
    """See `r2v.gateway.sessions.Sessions`; raises OSError."""

    def __init__(self, connection: Connection, cache_ttl_s: float) -> None:
        self._redis, self._ttl_s = connection, cache_ttl_s

    async def run_of(self, identity: str, *, fresh: bool) -> str:
        runs = self._redis.key("runs", identity)
        (run,) = await self._redis.run(("GET", runs))
        name = numbered(identity, int(run or 0))
        if not fresh or not (await self._redis.run(("EXISTS", self._redis.key("decisions", name))))[0]:
            return name
        run, _ = await self._redis.run(("INCR", runs), ("EXPIRE", runs, KEPT_S))
        return numbered(identity, int(run))

    async def enter(self, identity: str, *, dry: bool) -> Session:
        session, decisions, warm, signatures = (
            self._redis.key(kind, identity) for kind in ("session", "decisions", "warm", "signatures")
        )
        steps, tokens, decided, is_warm, signed, *_ = await self._redis.run(
            ("HINCRBY", session, "steps", 0 if dry else 1),
            ("HGET", session, "prompt_tokens"),
            ("LRANGE", decisions, 0, -1),
            ("EXISTS", warm),
            ("HGETALL", signatures),
            *(("EXPIRE", key, KEPT_S) for key in (session, decisions, signatures)),
        )
        memory = Memory(seed=derive_seed(identity, "episode"), decisions=tuple(_decision(raw) for raw in decided))
        authors = {name.decode(): model.decode() for name, model in signed.items()}
        return Session(identity, int(steps) - (not dry), memory, not is_warm, int(tokens or 0), authors)

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        warm = ("SET", self._redis.key("warm", session.id), 1, "PX", max(1, int(1000 * self._ttl_s)))
        await self._redis.run(
            ("RPUSH", self._redis.key("decisions", session.id), _encoder.encode(decision)),
            ("LTRIM", self._redis.key("decisions", session.id), -DECISIONS, -1),
            ("HSET", self._redis.key("session", session.id), "prompt_tokens", tokens),
            *([warm] if teacher else []),
        )

    async def sign(self, session: Session, signature: str, model: str) -> None:
        await self._redis.run(("HSET", self._redis.key("signatures", session.id), signature, model))

    async def offer_tools(self, identity: str) -> None:
        await self._redis.run(("SET", self._redis.key("tools", identity), 1, "EX", KEPT_S))

    async def had_tools(self, identity: str) -> bool:
        return bool((await self._redis.run(("EXISTS", self._redis.key("tools", identity))))[0])

    async def kill(self, on: bool) -> None:
        await self._redis.run(("SET", self._redis.key("killed"), 1) if on else ("DEL", self._redis.key("killed")))

    async def killed(self) -> bool:
        return bool((await self._redis.run(("EXISTS", self._redis.key("killed"))))[0])

    async def set_mode(self, change: ModeChange) -> None:
        await self._redis.run(("SET", self._redis.key("mode"), _encoder.encode(change)))

    async def mode(self) -> ModeChange | None:
        (raw,) = await self._redis.run(("GET", self._redis.key("mode")))
        return None if raw is None else msgspec.json.decode(raw, type=ModeChange)

    async def close(self) -> None:
        await self._redis.close()


class RedisBudgets:
    """See `r2v.gateway.budgets.Budgets`; raises OSError."""

    def __init__(self, connection: Connection, longest_step_s: float) -> None:
        """`longest_step_s`: after that nothing of a step is running any more, and its reservation expires."""
        self._redis, self._longest_s = connection, longest_step_s

    async def reserve(self, name: str, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        if not limits:
            return Reservation(name, limits, slm + teacher, True, None)
        bounds = [-1 if x is None else x for _, limit in limits for x in (limit.teacher_calls, limit.tokens, limit.usd)]
        amounts = (slm.tokens, slm.usd, teacher.tokens, teacher.usd)
        keys = self._keys(limits)
        ((granted, left),) = await self._redis.run(
            ("EVAL", RESERVE, len(keys), *keys, name, self._longest_s, *amounts, *bounds)
        )
        if granted == 0:
            raise Exhausted
        amount = slm + teacher if granted == 2 else slm
        return Reservation(name, limits, amount, granted == 2, None if left < 0 else int(left))

    async def settle(self, reservation: Reservation, spent: Amount) -> None:
        if reservation.limits:
            keys, amounts = self._keys(reservation.limits), (spent.calls, spent.tokens, spent.usd)
            await self._redis.run(("EVAL", SETTLE, len(keys), *keys, reservation.id, *amounts, KEPT_S))

    def _keys(self, limits: Limits) -> list[str]:
        return [self._redis.key(kind, scope) for scope, _ in limits for kind in ("spent", "held")]

    async def close(self) -> None:
        await self._redis.close()


def _decision(raw: bytes) -> Decision:
    return msgspec.convert(upgraded_decision(msgspec.json.decode(raw)), Decision)
