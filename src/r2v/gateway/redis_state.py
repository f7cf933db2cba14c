"""Sessions and budgets in Redis: replicas behind any load balancer share them, and the kill switch.

Budgets are checked and charged in one script, which Redis runs alone, so that no two replicas can take the last of one. What
a replica that died had reserved stays charged. Redis is the truth: run it with `appendonly yes`; without it no step is
served (503). Where Redis has replicas (`store.redis_replicas`), what is written waits for them, so that one of them may take
over. Each replica of the gateway writes a ledger of its own.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec

from r2v.core.seeds import derive_seed
from r2v.core.types import Decision, Memory
from r2v.gateway.accounts import Accounts
from r2v.gateway.budgets import UNLIMITED, Account, Amount, Exhausted, Limits, Reservation
from r2v.gateway.keys import StoredKey
from r2v.gateway.ledger import ModeChange
from r2v.gateway.redis_connection import Connection
from r2v.gateway.sessions import DECISIONS, SIGNATURES, Session, numbered
from r2v.runtime.upgrade import upgraded_decision

KEPT_S = 14 * 86_400
"""Sessions and budgets that were not used for so long are forgotten."""
BATCH = 200
"""Scopes of which Redis learns at once."""
_encoder = msgspec.json.Encoder()

# KEYS: the epoch, the replicas, what says that these are all, then what each limited scope has been charged, the session's
# first. ARGV: the epoch, the replica, how many replicas must have joined; calls, tokens and USD of the SLM's part, then of
# the teacher's; whether a session may begin (1 or 0); of each scope its limits (calls, tokens, USD, sessions; -1 = none)
# and what this replica's ledger has charged to it (the same four), which counts at the replica's first use of the scope in
# this epoch; in the end, seconds to keep. Answers {0 for nothing, 1 for the SLM, 2 for both; teacher calls left or -1;
# sessions charged; replicas}; {-1} where the epoch is another: Redis has lost what it knew; {-2; replicas} where not all
# of them have joined it.
RESERVE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {-1} end
local replicas = redis.call('SCARD', KEYS[2])
if replicas < tonumber(ARGV[3]) and redis.call('EXISTS', KEYS[3]) == 0 then return {-2, replicas} end
local units = {'calls', 'tokens', 'usd', 'sessions'}
local slm, teacher = {ARGV[4], ARGV[5], ARGV[6], 0}, {ARGV[7], ARGV[8], ARGV[9], 0}
local fits, both, left = true, true, -1
for i = 4, #KEYS do
  local at = 10 + 8 * (i - 4)
  if redis.call('HSETNX', KEYS[i], 'of ' .. ARGV[2], 1) == 1 then
    for j, unit in ipairs(units) do redis.call('HINCRBYFLOAT', KEYS[i], unit, ARGV[at + 4 + j]) end
  end
  redis.call('EXPIRE', KEYS[i], ARGV[11 + 8 * (#KEYS - 3)])
  local used = redis.call('HMGET', KEYS[i], 'calls', 'tokens', 'usd', 'sessions')
  if i == 4 and ARGV[10] == '1' and tonumber(used[4]) == 0 then teacher[4] = 1 end
  for j = 1, 4 do
    local limit, before = tonumber(ARGV[at + j]), tonumber(used[j])
    local first, second = tonumber(slm[j]), tonumber(slm[j]) + tonumber(teacher[j])
    if limit >= 0 then
      if first ~= 0 and before + first > limit then fits = false end
      if second ~= 0 and before + second > limit then both = false end
      if j == 1 and (left < 0 or limit - before < left) then left = math.max(0, limit - before) end
    end
  end
end
if not (fits or both) then return {0, left, 0, replicas} end
for i = 4, #KEYS do
  for j, unit in ipairs(units) do
    redis.call('HINCRBYFLOAT', KEYS[i], unit, tonumber(slm[j]) + (both and tonumber(teacher[j]) or 0))
  end
end
return {both and 2 or 1, left, both and teacher[4] or 0, replicas}
"""

# KEYS: the epoch, then what each scope has been charged. ARGV: the epoch; calls, tokens, USD and sessions to take back.
SETTLE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
for i = 2, #KEYS do
  for j, unit in ipairs({'calls', 'tokens', 'usd', 'sessions'}) do
    redis.call('HINCRBYFLOAT', KEYS[i], unit, -tonumber(ARGV[1 + j]))
  end
end
"""

# KEYS: the epoch, the replicas. ARGV: the name of a new epoch, the replica. Answers {epoch, 1 for a replica new to it}.
JOIN = """
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return {redis.call('GET', KEYS[1]), redis.call('SADD', KEYS[2], ARGV[2])}
"""


class RedisSessions:
    """See `r2v.gateway.sessions.Sessions`; raises OSError."""

    def __init__(self, connection: Connection, cache_ttl_s: float) -> None:
        self._redis, self.cache_ttl_s = connection, cache_ttl_s

    async def run_of(self, identity: str, *, fresh: bool) -> str:
        runs = self._redis.key("runs", identity)
        (run,) = await self._redis.run(("GET", runs))
        name = numbered(identity, int(run or 0))
        if not fresh or not (await self._redis.run(("EXISTS", self._redis.key("decisions", name))))[0]:
            return name
        run, _ = await self._redis.run(("INCR", runs), ("EXPIRE", runs, KEPT_S))
        return numbered(identity, int(run))

    async def begun(self, identity: str) -> bool:
        return bool((await self._redis.run(("EXISTS", self._redis.key("decisions", identity))))[0])

    async def enter(self, identity: str, *, dry: bool) -> Session:
        session, decisions, warm, signatures = (
            self._redis.key(kind, identity) for kind in ("session", "decisions", "warm", "authors")
        )
        steps, tokens, decided, is_warm, signed, *_ = await self._redis.run(
            ("HINCRBY", session, "steps", 0 if dry else 1),
            ("HGET", session, "prompt_tokens"),
            ("LRANGE", decisions, 0, -1),
            ("EXISTS", warm),
            ("LRANGE", signatures, 0, -1),
            *(("EXPIRE", key, KEPT_S) for key in (session, decisions, signatures)),
        )
        memory = Memory(seed=derive_seed(identity, "episode"), decisions=tuple(_decision(raw) for raw in decided))
        authors = dict(msgspec.json.decode(raw, type=tuple[str, str]) for raw in signed)
        return Session(identity, int(steps) - (not dry), memory, not is_warm, int(tokens or 0), authors)

    async def remember(self, session: Session, decision: Decision, *, teacher: bool, tokens: int) -> None:
        warm = ("SET", self._redis.key("warm", session.id), 1, "PX", max(1, int(1000 * self.cache_ttl_s)))
        await self._redis.run(
            ("RPUSH", self._redis.key("decisions", session.id), _encoder.encode(decision)),
            ("LTRIM", self._redis.key("decisions", session.id), -DECISIONS, -1),
            ("HSET", self._redis.key("session", session.id), "prompt_tokens", tokens),
            *([warm] if teacher else []),
        )

    async def sign(self, session: Session, signature: str, model: str) -> None:
        authors = self._redis.key("authors", session.id)
        await self._redis.run(("RPUSH", authors, _encoder.encode((signature, model))), ("LTRIM", authors, -SIGNATURES, -1))

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


class RedisKeys:
    """See `r2v.gateway.keys.KeyStore`; raises OSError."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def empty(self) -> bool:
        return False  # nobody knows before it answers

    async def all(self) -> list[StoredKey]:
        (found,) = await self._redis.run(("HGETALL", self._redis.key("keys")))
        return [msgspec.json.decode(found[name], type=StoredKey) for name in sorted(found)]

    async def put(self, key: StoredKey) -> None:
        await self._redis.run(("HSET", self._redis.key("keys"), key.name, msgspec.json.encode(key)))

    async def remove(self, name: str) -> bool:
        return bool((await self._redis.run(("HDEL", self._redis.key("keys"), name)))[0])


class RedisBudgets:
    """See `r2v.gateway.budgets.Budgets`; raises OSError.

    What Redis knows is of one epoch, which it loses with the rest when it is restarted without its data. Then each replica
    joins a new one, with what its own ledger has charged; and nobody spends before as many have joined as its ledger knows
    of, or the operator says that those are all.
    """

    def __init__(self, connection: Connection, accounts: Accounts, replica: str) -> None:
        """`accounts` and `replica` (its name) are those of this replica's own ledger."""
        self._redis, self._accounts, self._replica = connection, accounts, replica
        self._epoch = ""

    async def reserve(self, name: str, account: Account, limits: Limits, slm: Amount, teacher: Amount) -> Reservation:
        amount, both, left = slm + teacher, True, None
        if limits:
            granted, rest, sessions = await self._charge(limits, slm, teacher, begins=True)
            if granted == 0:
                raise Exhausted
            both, left = granted == 2, None if rest < 0 else rest
            amount = (slm + teacher if both else slm) + Amount(sessions=sessions)
        async with self._or_given_back(limits, amount):
            self._accounts.hold(name, account, amount)
        return Reservation(name, account, limits, amount, both, left)

    async def extend(self, reservation: Reservation, amount: Amount) -> None:
        if reservation.limits and not (await self._charge(reservation.limits, amount, Amount(), begins=False))[0]:
            raise Exhausted
        async with self._or_given_back(reservation.limits, amount):
            self._accounts.extend(reservation.id, reservation.account, amount)
        reservation.amount += amount

    async def settle(self, reservation: Reservation, spent: Amount, lost: Amount, why: str) -> None:
        if not reservation.written:
            self._accounts.release(reservation.id, spent, lost, why)
        await self._give_back(reservation.limits, replace(reservation.amount - spent - lost, sessions=0))

    @asynccontextmanager
    async def _or_given_back(self, limits: Limits, amount: Amount) -> AsyncIterator[None]:
        """Where the ledger cannot be written, nothing is spent: what was charged is everybody's again."""
        try:
            yield
        except sqlite3.Error:
            await self._give_back(limits, amount)
            raise

    async def _give_back(self, limits: Limits, amount: Amount) -> None:
        if limits:
            keys = [self._redis.key("epoch"), *self._keys(limits)]
            await self._redis.run(("EVAL", SETTLE, len(keys), *keys, self._epoch, *amount.parts))

    async def check(self) -> None:
        self._accounts.check()
        (epoch,) = await self._redis.run(("GET", self._redis.key("epoch")))
        if epoch is None or epoch.decode() != self._epoch:
            await self._join()

    async def _charge(self, limits: Limits, first: Amount, second: Amount, *, begins: bool) -> tuple[int, int, int]:
        """(0 for nothing, 1 for the first, 2 for both; teacher calls left or -1; sessions charged)."""
        if not self._epoch:
            await self._join()
        known = self._accounts.replicas  # read each time: other processes of this gateway write it, too
        granted, left, sessions, replicas = await self._asked(limits, first, second, begins=begins, of=known)
        if granted == -1:
            await self._join()
            granted, left, sessions, replicas = await self._asked(limits, first, second, begins=begins, of=known)
        if granted == -1:
            raise OSError("Redis forgets what it is given")
        if granted == -2:
            raise OSError(
                f"Redis has lost what {known} replicas spent (run it with `appendonly yes`); {left} of them said it again: "
                f"start the others, or, if there are none: redis-cli SET {self._redis.key('complete')} 1 EX 600"
            )
        if replicas != known:
            self._accounts.replicas = replicas
        return granted, left, sessions

    async def _asked(
        self, limits: Limits, first: Amount, second: Amount, *, begins: bool, of: int = 0
    ) -> tuple[int, int, int, int]:
        """What `RESERVE` answers; `of`: how many replicas must have joined.

        What this replica's ledger has charged is read each time, though the script needs it only at the replica's first use
        of a scope: Redis may forget a scope (KEPT_S, a failover) within an epoch, and a process that remembered to have said
        it would not say it again. The read takes 50 microseconds, what `RESERVE` takes is about a millisecond.
        """
        keys = [*map(self._redis.key, ("epoch", "replicas", "complete")), *self._keys(limits)]
        with self._accounts.transaction():
            own = [self._accounts.charged(scope) for scope, _ in limits]
        bounds: list[float] = []
        for (_, limit), charged in zip(limits, own, strict=True):
            most = (limit.teacher_calls, limit.tokens, limit.usd, limit.sessions)
            bounds += [*(-1 if bound is None else bound for bound in most), *charged.parts]
        amounts = (*first.parts[:3], *second.parts[:3], int(begins))
        command = ("EVAL", RESERVE, len(keys), *keys, self._epoch, self._replica, of, *amounts, *bounds, KEPT_S)
        ((granted, *rest),) = await self._redis.run(command)
        left, sessions, replicas = (*rest, 0, 0, 0)[:3]
        return granted, left, sessions, replicas

    async def _join(self) -> None:
        """Take part in the epoch of Redis; in a new one, with all that this ledger has charged."""
        keys = (self._redis.key("epoch"), self._redis.key("replicas"))
        (found,) = await self._redis.run(("EVAL", JOIN, 2, *keys, secrets.token_hex(8), self._replica))
        self._epoch, new = found[0].decode(), found[1]
        if new:
            scopes = self._accounts.scopes()
            for i in range(0, len(scopes), BATCH):
                batch = [(scope, UNLIMITED) for scope in scopes[i : i + BATCH]]
                if (await self._asked(batch, Amount(), Amount(), begins=False))[0] < 0:
                    raise OSError("Redis forgets what it is given")

    def _keys(self, limits: Limits) -> list[str]:
        return [self._redis.key("spent", scope) for scope, _ in limits]

    async def close(self) -> None:
        await self._redis.close()


def _decision(raw: bytes) -> Decision:
    return msgspec.convert(upgraded_decision(msgspec.json.decode(raw)), Decision)
