"""`LocalPolicy`: K candidates from any Hugging Face causal LM, for hundreds of episodes at once.

Concurrent `propose` calls are gathered into one forward pass. Each episode has a row of a key/value cache, found again by
its history, so a step only feeds what is new; where one history goes on in two ways, its row is copied. The K candidates
grow as a tree in the row, and only distinct branches are computed (a confident model draws the same action five times).
Candidates depend on (context, seed) alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r2v.clients.local.attention import attention_masks, layer_kinds, longest_text
from r2v.clients.local.loading import load_model
from r2v.clients.local.sampling import ENTROPY_TOP, cumulative_NV, draw_NK, entropy_N, uniforms_KL
from r2v.clients.local.slots import SlotCache
from r2v.clients.local.transcript import Encoder, answer, segments
from r2v.core.types import Action, Candidate, Context, Usage

GROUP = 16
History = tuple[str, tuple[str, ...], tuple[str, ...]]
"""(goal, observations, actions): all that decides what a row holds."""


@dataclass(frozen=True)
class Drawn:
    """A candidate with what its numbers were computed from."""

    candidate: Candidate
    tokens: tuple[tuple[str, float], ...]
    """Each token and its log-probability, the end of the sequence too; their sum is the candidate's."""
    top: tuple[tuple[str, float], ...]
    """The likeliest first tokens, `ENTROPY_TOP` at most."""


@dataclass
class _Request:
    context: Context
    history: History
    k: int
    seed: int
    answer: asyncio.Future[list[_Branch]]
    entropy: float = 0.0
    top: tuple[list[float], list[int]] = ([], [])
    """Log-probabilities and ids of the likeliest first tokens."""


@dataclass
class _Branch:
    """A distinct beginning of an action, shared by the candidates `members`."""

    request: int
    row: int
    members: list[int]
    tokens: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    """Cache positions of those tokens."""
    logps: list[float] = field(default_factory=list)


class LocalPolicy:
    """A policy over a causal LM in this process.

    Args:
        model: a Hugging Face causal LM whose layers are full, sliding-window or chunked attention (`load_model` checks it).
        tokenizer: its tokenizer, with an end-of-sequence token.
        name: of the policy, in records.
        temperature: divides the logits before a token is drawn; log-probabilities are those at temperature 1.
        top_p: only the likeliest tokens that together have this probability are drawn.
        max_new_tokens: of a candidate, the end-of-sequence token included.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "slm",
        temperature: float = 0.7,
        top_p: float = 0.95,
        max_new_tokens: int = 16,
    ) -> None:
        self.name = name
        self._model = model.eval()
        self._device = model.device
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id
        self._encode = Encoder(tokenizer)
        self._temperature, self._top_p, self._max_new = temperature, top_p, max_new_tokens
        self._kinds = layer_kinds(model.config)
        self._windows = any(self._kinds.values())
        self._limit = longest_text(model.config) - max_new_tokens
        self._pending: list[_Request] = []
        self._cache = SlotCache(model.config.get_text_config().num_hidden_layers)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._held: dict[History, tuple[int, int]] = {}
        """Of each history read so far: the row that begins with it, and its length there."""
        self._histories: list[list[History]] = []
        """What each row holds, shortest first."""
        self._texts: dict[tuple[int, ...], str] = {}

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu", precision: str = "float32", **options: Any) -> LocalPolicy:
        """From a model folder or hub id; `options` as for the constructor."""
        return cls(*load_model(path, device=device, precision=precision), **options)

    async def propose(self, context: Context, k: int, *, seed: int) -> tuple[Candidate, ...]:
        """K candidates for the next action. Raises ValueError when the context is longer than the model reads."""
        request, branches = await self._submit(context, k, seed)
        distinct = {id(branch): self._candidate(branch, request.entropy) for branch in branches}
        return tuple(distinct[id(branch)] for branch in branches)

    async def draw(self, context: Context, k: int, *, seed: int) -> tuple[Drawn, ...]:
        """What `propose` gives, with its tokens, which servers return too."""
        request, branches = await self._submit(context, k, seed)
        top = tuple((self._token(token), logp) for logp, token in zip(*request.top, strict=True))
        return tuple(
            Drawn(
                self._candidate(branch, request.entropy),
                tuple((self._token(token), logp) for token, logp in zip(branch.tokens, branch.logps, strict=True)),
                top,
            )
            for branch in branches
        )

    async def _submit(self, context: Context, k: int, seed: int) -> tuple[_Request, list[_Branch]]:
        loop = asyncio.get_running_loop()
        request = _Request(context, context.history(context.t), k, seed, loop.create_future())
        self._pending.append(request)
        if len(self._pending) == 1:
            loop.call_soon(self._wait, loop, 0)
        return request, await request.answer

    def _wait(self, loop: asyncio.AbstractEventLoop, queued: int) -> None:
        """Let every coroutine queue its request; when a round of the loop brings no further request, answer them all."""
        if len(self._pending) > queued:
            loop.call_soon(self._wait, loop, len(self._pending))
        else:
            self._flush()

    def _flush(self) -> None:
        requests, self._pending = self._pending, []
        requests = [request for request in requests if not request.answer.cancelled()]
        try:
            with torch.inference_mode():
                answers = self._answer(requests)
        except Exception as error:
            for request in requests:
                request.answer.set_exception(error)
            return
        for request, candidates in zip(requests, answers, strict=True):
            request.answer.set_result(candidates)

    def _answer(self, requests: Sequence[_Request]) -> list[list[_Branch]]:
        rows, fresh = self._place(requests)
        logits_NV = self._read(requests, rows, fresh)
        return self._grow(requests, rows, logits_NV)

    def _place(self, requests: Sequence[_Request]) -> tuple[list[int], list[list[int]]]:
        """A row for each request, and the tokens that its row lacks (the whole context where its past is not held)."""
        pasts = [self._held.get(r.context.history(r.context.t - 1)) if r.context.actions else None for r in requests]
        busy = {past[0] for past in pasts if past}
        if len(self._lengths) - len(busy) > max(8, len(self._lengths) // 4):
            renamed = self._compact(sorted(busy))
            pasts = [(renamed[past[0]], past[1]) if past else None for past in pasts]
            busy = set(renamed.values())
        idle = [row for row in range(len(self._lengths)) if row not in busy]
        rows: list[int] = []
        missing: list[list[int]] = []
        copies: list[tuple[int, int, int]] = []
        extended: set[int] = set()
        for request, past in zip(requests, pasts, strict=True):
            context = request.context
            tokens = self._since(context) if past else self._whole(context)
            size = (past[1] if past else 0) + len(tokens)
            if size > self._limit:
                raise ValueError(f"a context of {size} tokens exceeds the model's {self._limit}")
            if past and past[0] not in extended and past[1] == self._lengths[past[0]]:
                row = past[0]
                extended.add(row)
            else:
                row = idle.pop() if idle else self._new_row()
                self._forget(row)
                if past:
                    copies.append((*past, row))
            rows.append(row)
            missing.append(tokens)
        self._cache.copy(copies)
        for _, length, row in copies:
            self._lengths[row] = length
        return rows, missing

    def _new_row(self) -> int:
        self._lengths = np.append(self._lengths, 0)
        self._histories.append([])
        return len(self._lengths) - 1

    def _forget(self, row: int) -> None:
        """Empty a row."""
        for history in self._histories[row]:
            if self._held.get(history, (-1,))[0] == row:
                del self._held[history]
        self._histories[row] = []
        self._lengths[row] = 0

    def _compact(self, kept: list[int]) -> dict[int, int]:
        """Drop every other row; new place of each kept one."""
        for row in set(range(len(self._lengths))) - set(kept):
            self._forget(row)
        self._cache.keep(torch.tensor(kept, dtype=torch.long))
        self._lengths = self._lengths[kept]
        self._histories = [self._histories[old] for old in kept]
        renamed = {old: new for new, old in enumerate(kept)}
        self._held = {history: (renamed[row], length) for history, (row, length) in self._held.items()}
        return renamed

    def _since(self, context: Context) -> list[int]:
        """Tokens of the last action and what came of it."""
        action, observation = context.actions[-1].text, context.observations[-1]
        return self._encode(action, action=True) + self._encode(answer(observation), action=False)

    def _whole(self, context: Context) -> list[int]:
        texts = segments(context.goal, context.observations, [action.text for action in context.actions])
        return self._encode.bos + [token for text, is_action in texts for token in self._encode(text, action=is_action)]

    def _read(self, requests: Sequence[_Request], rows: list[int], missing: list[list[int]]) -> torch.Tensor:
        """Feed what is missing; logits [N, V] after the last token. Texts of like length are fed together."""
        sizes = np.array([len(tokens) for tokens in missing])
        logits: list[torch.Tensor | None] = [None] * len(requests)
        for group in _alike(sizes):
            group = group[np.argsort([rows[i] for i in group])]
            width = int(sizes[group].max())
            tokens_RQ = np.zeros((len(group), width), dtype=np.int64)
            at_RQ = np.zeros((len(group), width), dtype=np.int64)
            positions_RQ = np.zeros((len(group), width), dtype=np.int64)
            here = np.array([rows[i] for i in group])
            for r, i in enumerate(group):
                n, start = sizes[i], self._lengths[rows[i]]
                tokens_RQ[r, width - n :] = missing[i]
                # Padding goes to the left, its keys behind the row's end, where no row attends and the next text lands.
                at_RQ[r, width - n :] = positions_RQ[r, width - n :] = start + np.arange(n)
                at_RQ[r, : width - n] = start + n + np.arange(width - n)
            keys_RS = np.arange(int(at_RQ.max()) + 1)[None]  # all rows alike
            visible_RQS = keys_RS[:, None] <= at_RQ[:, :, None]
            out = self._forward(here, tokens_RQ, at_RQ, positions_RQ, keys_RS, visible_RQS, keep=1)
            for r, i in enumerate(group):
                logits[i] = out[r, -1]
                self._lengths[rows[i]] += sizes[i]
                history = requests[int(i)].history
                self._held[history] = (rows[i], int(self._lengths[rows[i]]))
                self._histories[rows[i]].append(history)
        return torch.stack([row for row in logits if row is not None]).float()

    def _forward(
        self,
        rows: np.ndarray,
        tokens_RQ: np.ndarray,
        at_RQ: np.ndarray,
        positions_RQ: np.ndarray,
        keys_RS: np.ndarray,
        visible_RQS: np.ndarray,
        keep: int,
    ) -> torch.Tensor:
        """Logits [R, Q, V] of queries whose keys go to cache positions `at`; `keep` = 1: [R, 1, V], the last query's.

        `positions`, `keys`: where the queries, and what is at each cache position, are in their texts.
        """
        in_use = len(self._lengths)
        wanted: np.ndarray | slice = slice(None)
        if len(rows) < in_use < 2 * len(rows):
            # Reading a few idle rows in place is cheaper than copying all the busy ones. They write behind their ends.
            idle = np.setdiff1d(np.arange(in_use), rows)
            if (grown := int(self._lengths[idle].max()) + 1 - keys_RS.shape[1]) > 0:
                keys_RS = np.pad(keys_RS, ((0, 0), (0, grown)))
                visible_RQS = np.pad(visible_RQS, ((0, 0), (0, 0), (0, grown)))
            like = np.zeros(in_use, dtype=np.int64)  # an idle row is fed what the first one is
            like[rows] = np.arange(len(rows))
            tokens_RQ, at_RQ, positions_RQ, visible_RQS = tokens_RQ[like], at_RQ[like], positions_RQ[like], visible_RQS[like]
            keys_RS = keys_RS[like] if len(keys_RS) > 1 else keys_RS
            at_RQ[idle] = self._lengths[idle, None]
            wanted, rows = rows, np.arange(in_use)
        self._cache.aim(torch.from_numpy(rows), torch.from_numpy(at_RQ), keys_RS.shape[1], subset=len(rows) < in_use)
        logits: torch.Tensor = self._model(
            input_ids=torch.from_numpy(tokens_RQ).to(self._device),
            position_ids=torch.from_numpy(positions_RQ).to(self._device),
            attention_mask=attention_masks(self._model, self._kinds, visible_RQS, positions_RQ, keys_RS),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits[wanted]

    def _grow(self, requests: Sequence[_Request], rows: list[int], logits_NV: torch.Tensor) -> list[list[_Branch]]:
        """Grow every request's candidates token by token; branches split where the draws differ."""
        draws = [uniforms_KL(request.seed, request.k, self._max_new) for request in requests]
        live = [_Branch(i, rows[i], list(range(request.k))) for i, request in enumerate(requests)]
        finished: list[dict[int, _Branch]] = [{} for _ in requests]
        scratch = self._lengths.copy()
        top = torch.log_softmax(logits_NV, dim=-1).topk(min(ENTROPY_TOP, logits_NV.shape[-1]), dim=-1)
        entropies, logps, tokens = (
            entropy_N(top.values, logits_NV.shape[-1]).tolist(),
            top.values.tolist(),
            top.indices.tolist(),
        )
        for request, entropy, *likeliest in zip(requests, entropies, logps, tokens, strict=True):
            request.entropy, request.top = entropy, (likeliest[0], likeliest[1])
        for depth in range(self._max_new):
            logp_NV = torch.log_softmax(logits_NV, dim=-1)
            cumulative = cumulative_NV(logits_NV, self._temperature, self._top_p)
            uniforms = np.zeros((len(live), max(len(branch.members) for branch in live)))
            for b, branch in enumerate(live):
                uniforms[b, : len(branch.members)] = draws[branch.request][branch.members, depth]
            drawn_NK = draw_NK(cumulative, torch.from_numpy(uniforms).to(self._device))
            logps, tokens = logp_NV.gather(1, drawn_NK).tolist(), drawn_NK.tolist()
            split: dict[tuple[int, int], _Branch] = {}
            for b, branch in enumerate(live):
                for k, token, logp in zip(branch.members, tokens[b], logps[b], strict=False):
                    child = split.get((b, token))
                    if child is None:
                        child = _Branch(
                            branch.request, branch.row, [], [*branch.tokens, token], branch.path, [*branch.logps, logp]
                        )
                        split[b, token] = child
                    child.members.append(k)
            live = []
            for child in split.values():
                if child.tokens[-1] == self._eos or depth + 1 == self._max_new:
                    finished[child.request].update(dict.fromkeys(child.members, child))
                else:
                    child.path = [*child.path, int(scratch[child.row])]
                    scratch[child.row] += 1
                    live.append(child)
            if not live:
                break
            logits_NV = self._extend(live, depth)
        return [[finished[i][k] for k in range(request.k)] for i, request in enumerate(requests)]

    def _extend(self, live: list[_Branch], depth: int) -> torch.Tensor:
        """Feed each branch's last token; logits [branches, V]."""
        groups: dict[int, list[int]] = {}
        for b, branch in enumerate(live):
            groups.setdefault(branch.row, []).append(b)
        rows = np.array(sorted(groups))
        width = max(len(members) for members in groups.values())
        beyond = 1 + max(branch.path[-1] - int(self._lengths[branch.row]) for branch in live)
        tokens_RQ = np.zeros((len(rows), width), dtype=np.int64)
        # Unused queries write behind all branches, where no row attends and the next text will land.
        at_RQ = np.repeat(self._lengths[rows][:, None] + beyond, width, axis=1)
        span = int(at_RQ.max()) + 1
        keys_RS = np.tile(np.arange(span), (len(rows), 1)) if self._windows else np.arange(span)[None]
        visible_RQS = np.repeat((np.arange(span) < self._lengths[rows][:, None])[:, None], width, axis=1)
        where = np.zeros((2, len(live)), dtype=np.int64)
        for r, row in enumerate(rows):
            for q, b in enumerate(groups[int(row)]):
                branch = live[b]
                tokens_RQ[r, q] = branch.tokens[-1]
                at_RQ[r, q] = branch.path[-1]
                visible_RQS[r, q, branch.path] = True
                if self._windows:
                    keys_RS[r, branch.path] = self._lengths[row] + np.arange(len(branch.path))
                where[:, b] = r, q
        positions_RQ = np.repeat(self._lengths[rows][:, None] + depth, width, axis=1)
        logits = self._forward(rows, tokens_RQ, at_RQ, positions_RQ, keys_RS, visible_RQS, keep=0)
        return logits[where[0], where[1]].float()

    def _candidate(self, branch: _Branch, entropy: float) -> Candidate:
        tokens = branch.tokens[:-1] if branch.tokens[-1] == self._eos else branch.tokens
        usage = Usage(1, int(self._lengths[branch.row]), len(branch.tokens))
        return Candidate(Action(self._text(tuple(tokens))), sum(branch.logps), entropy, usage)

    def _token(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _text(self, tokens: tuple[int, ...]) -> str:
        if tokens not in self._texts:
            self._texts[tokens] = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return self._texts[tokens]


def _alike(sizes: np.ndarray) -> list[np.ndarray]:
    """Indices in groups of like size, so that padding is short; a forward pass for less than `GROUP` rows does not pay."""
    order = np.argsort(sizes, kind="stable")
    cuts, first = [], 0
    for i in range(1, len(order)):
        if i - first >= GROUP and len(order) - i >= GROUP and sizes[order[i]] > 1.3 * sizes[order[first]]:
            cuts.append(i)
            first = i
    return np.split(order, cuts)
