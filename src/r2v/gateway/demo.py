"""Sessions for `r2v serve --mock` to show: a made-up agent settles orders through the gateway, and says how each ended."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from r2v.messages.conversation import Json

SESSIONS, ORDERS = 40, 10
AT_ONCE = 8
"""Sessions that are played at a time: the page grows while one looks at it."""
REFUSED = 0.15
"""Share of the cards that are refused: then the order has to be settled by bank."""
TOOL: Json = {
    "name": "settle",
    "description": "Settle an order.",
    "parameters": {
        "type": "object",
        "properties": {"order": {"type": "string"}, "by": {"enum": ["card", "bank"]}},
        "required": ["order", "by"],
        "additionalProperties": False,
    },
}


class Shop:
    """The world of one session: orders to be settled one after the other, each with the right way to do it."""

    def __init__(self, seed: int) -> None:
        draw = Random(seed)
        self._left = [str(order) for order in draw.sample(range(100, 1000), ORDERS)]
        self._refused = {order for order in self._left if draw.random() < REFUSED}
        self._by = "card"
        self.invalid = 0
        """Calls that could not be executed."""
        self.right = True
        """Whether every order that was settled was the one to be settled."""

    @property
    def solved(self) -> bool:
        return self.right and not self._left

    @property
    def next(self) -> str:
        if not self._left:
            return "All orders are settled."
        return f"next: settle {json.dumps({'order': self._left[0], 'by': self._by})}"

    def answer(self, name: str, arguments: str) -> str:
        """The result of a call."""
        try:
            call = json.loads(arguments)
        except ValueError:
            call = None
        if name != "settle" or not isinstance(call, dict) or call.keys() != {"order", "by"}:
            self.invalid += 1
            return f"error: no such call\n{self.next}"
        order = self._left[0]
        if call["order"] == order and call["by"] == "card" and order in self._refused:
            self._by = "bank"
            return f"error: the card for order {order} is refused\n{self.next}"
        self.right = self.right and call == {"order": order, "by": self._by}
        del self._left[0]
        self._by = "card"
        return f"settled order {call['order']}\n{self.next}"


@dataclass
class Played:
    """What came of a session."""

    shop: Shop
    steps: list[Mapping[str, str]] = field(default_factory=list)
    """The headers of each answer."""


async def demonstrate(url: str, keys: str) -> None:
    """Play sessions for the page, until the gateway ends.

    Args:
        url: of a gateway that listens; it need not serve yet.
        keys: of clients, comma separated; the first is used.
    """
    try:
        await play(url, keys.split(",")[0].strip())
    except aiohttp.ClientError as error:  # where it is no refusal, the gateway or its models end
        if isinstance(error, aiohttp.ClientResponseError) and error.status < 500:
            logging.getLogger("uvicorn.error").warning("the sessions to show stopped: %s", error)


async def play(url: str, key: str, sessions: int = SESSIONS) -> list[Played]:
    """Play sessions against a gateway with mock models, and post their outcomes."""
    places = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(url, headers={"authorization": f"Bearer {key}"}, raise_for_status=True) as http:

        async def one(seed: int) -> Played:
            async with places:
                return await _session(http, seed)

        return await asyncio.gather(*map(one, range(sessions)))


async def _session(http: aiohttp.ClientSession, seed: int) -> Played:
    shop, name = Shop(seed), f"demo-{seed}"
    played, messages = Played(shop), [{"role": "user", "content": f"Settle the orders as you are told. {shop.next}"}]
    while True:
        request: Json = {"model": "r2v", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
        async with http.post("/v1/chat/completions", json=request, headers={"x-r2v-session-id": name}) as response:
            message: dict[str, Any] = (await response.json())["choices"][0]["message"]
            played.steps.append(response.headers)
        calls = message.get("tool_calls") or []
        messages.append(message)
        for call in calls:
            result = shop.answer(call["function"]["name"], call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if not calls or len(played.steps) == 2 * ORDERS:
            break
    async with http.post("/v1/outcomes", json={"session_id": name, "reward": float(shop.solved)}):
        return played
