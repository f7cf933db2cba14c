"""Episodes and conversations as token sequences with loss weights, and batches of them.

Example (weights in brackets): Task: ... you see a shelf 1. > [.3 each]  go to shelf 1 <eos> [1 each]  You arrive ... [.3]
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor

from r2v.clients.local.transcript import Encoder, segments
from r2v.core.errors import ArtifactError
from r2v.core.types import Episode, Step
from r2v.messages.transcript import conversation_of

REDACTED = "keep no messages (a gateway's ledger needs `store.redact: false` when they are served)"


class TurnChangesError(ArtifactError):
    """A chat template shows a turn otherwise once more turns follow."""


@dataclass(frozen=True)
class Sequences:
    tokens: tuple[NDArray[np.int64], ...]
    weights: tuple[NDArray[np.float32], ...]


def is_chat(episode: Episode) -> bool:
    """Whether an episode is a conversation: it keeps messages, or a gateway served it (then a redacted one keeps none)."""
    return episode.task.environment == "gateway" or any(step.choice.reply is not None for step in episode.steps)


def is_learned(episode: Episode, step: Step) -> bool:
    """Whether the step's action is learned: never noise; of an episode that was not solved, what the teacher did alone."""
    return step.choice.source == "teacher" or (step.choice.source == "slm" and bool(episode.success))


def encode_chats(episodes: Sequence[Episode], tokenizer: Any, longest: int) -> tuple[Sequences, dict[str, int]]:
    """Episodes that keep messages, by `encode_conversation`; nothing is cut off.

    Some templates (Qwen3's) show a turn otherwise once more turns follow. Then each turn is a sequence of its own, with what
    the model reads before it: as it will be served.

    Args:
        episodes: those of which `is_chat` holds.
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        longest: tokens that the model reads.

    Returns:
        What can be learned, and how many episodes cannot be, by reason. Weight is on actions that `is_learned` names, none
        on turns of an assistant that were there when the episode began.

    Raises:
        ArtifactError: without a chat template.
    """
    tokens: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    skipped: Counter[str] = Counter()
    unshown = ""
    for episode in episodes:
        learned: list[bool] = []
        for step in episode.steps:
            learned += [False for message in step.messages if message.role == "assistant"]
            learned.append(is_learned(episode, step))
        try:
            messages = conversation_of(episode)
        except ValueError:
            skipped[REDACTED] += 1
            continue
        tools = json.loads(episode.tools) if episode.tools else None
        try:
            try:
                encoded = [encode_conversation(messages, tools, tokenizer, learned)]
            except TurnChangesError:
                ends = [i for i, message in enumerate(messages, start=1) if message["role"] == "assistant"]
                encoded = [
                    encode_conversation(messages[:end], tools, tokenizer, [False] * n + [True])
                    for n, end in enumerate(ends)
                    if learned[n]
                ]
        except ArtifactError as error:
            if not tokenizer.chat_template:
                raise
            unshown = unshown or f"cannot be encoded, e.g.: {error}"
            skipped[unshown] += 1
            continue
        if any(len(tokens_L) > longest for tokens_L, _ in encoded):
            skipped[f"are longer than the {longest} tokens that the model reads"] += 1
            continue
        tokens += [tokens_L for tokens_L, _ in encoded]
        weights += [weights_L for _, weights_L in encoded]
    return Sequences(tuple(tokens), tuple(weights)), dict(skipped)


def encode_episodes(episodes: Sequence[Episode], tokenizer: Any, observation_weight: float) -> Sequences:
    """Episodes in the household's transcript form: weight 1 on actions, `observation_weight` on what is read.

    No weight on actions that `is_learned` leaves out; the final observation is not learned.
    """
    encoder, all_tokens, all_weights = Encoder(tokenizer), [], []
    transcripts = [
        segments(e.goal, [s.observation.text for s in e.steps], [s.choice.action.text for s in e.steps]) for e in episodes
    ]
    encoder.learn(text for texts in transcripts for text, _ in texts)
    for episode, texts in zip(episodes, transcripts, strict=True):
        learned = iter(is_learned(episode, step) for step in episode.steps)
        tokens, weights = list(encoder.bos), [0.0] * len(encoder.bos)
        for text, is_action in texts:
            piece = encoder(text, action=is_action)
            weight = float(next(learned)) if is_action else observation_weight
            tokens += piece
            weights += [weight] * len(piece)
        all_tokens.append(np.array(tokens, dtype=np.int64))
        all_weights.append(np.array(weights, dtype=np.float32))
    return Sequences(tuple(all_tokens), tuple(all_weights))


def encode_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    tokenizer: Any,
    learned: Sequence[bool] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A conversation in the tokenizer's chat template: weight 1 on what the assistant wrote, 0 on all else.

    A turn is what follows the template's generation prompt, up to and including the end-of-sequence token if it writes one.

    Args:
        messages: in OpenAI's form (role, content, tool_calls, tool_call_id, name).
        tools: JSON schemas of the tools, or None.
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        learned: of each assistant message, whether it has its weight; None: all have.

    Returns:
        Token ids [L] and loss weights [L].

    Raises:
        ArtifactError: without a chat template, or when the template cannot show the conversation turn by turn.
    """
    if not tokenizer.chat_template:
        raise ArtifactError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; take an instruct model"
        )
    shown = [_for_template(message) for message in messages]
    tools = list(tools) if tools else None
    if learned is None:
        learned = [True for message in shown if message["role"] == "assistant"]
    try:
        if re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template(None, tools)):
            out = tokenizer.apply_chat_template(shown, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
            weights_L = np.array(out["assistant_masks"], dtype=np.float32)
            if not all(learned):
                spans = np.flatnonzero(np.diff(weights_L, prepend=0.0, append=0.0)).reshape(-1, 2)
                if len(spans) != len(learned):
                    raise ArtifactError("the {% generation %} marks of the chat template do not keep the turns apart")
                for begin, end in spans[~np.array(learned)]:
                    weights_L[begin:end] = 0.0
            return np.array(out["input_ids"], dtype=np.int64), weights_L
        whole = tokenizer.apply_chat_template(shown, tools=tools, tokenize=False)
        turns = []
        said = [i for i, message in enumerate(shown) if message["role"] == "assistant"]
        for i in compress(said, learned):
            before, after = (
                tokenizer.apply_chat_template(shown[:n], tools=tools, tokenize=False, add_generation_prompt=n == i)
                for n in (i, i + 1)
            )
            if not (whole.startswith(after) and after.startswith(before)):
                raise TurnChangesError(
                    f"the chat template shows turn {i} otherwise once more turns follow; end the "
                    "conversation there, or mark the assistant's words with {% generation %} in the template"
                )
            end = after.rfind(tokenizer.eos_token, len(before)) if tokenizer.eos_token else -1
            turns.append((len(before), len(after) if end < 0 else end + len(tokenizer.eos_token)))
    except (TemplateError, ValueError) as error:  # a template refuses what it cannot show (roles, their order)
        raise ArtifactError(f"the chat template cannot show the conversation ({str(error).splitlines()[0]})") from None
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    begins_L = np.array([begin for begin, _ in encoded["offset_mapping"]], dtype=np.int64)
    weights_L = np.zeros(len(begins_L), dtype=np.float32)
    for begin, end in turns:
        weights_L[(begins_L >= begin) & (begins_L < end)] = 1.0
    return np.array(encoded["input_ids"], dtype=np.int64), weights_L


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as chat templates expect it: content is a text, and the arguments of a tool call are an object."""
    shown = {**message, "content": message.get("content") or ""}
    if message.get("tool_calls"):
        shown["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return shown


def _object(arguments: Any) -> Any:
    try:
        return json.loads(arguments)
    except (TypeError, ValueError):  # an object already, or what a model wrote in place of JSON
        return arguments


def batches(data: Sequences, batch_tokens: int, pad: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens_BL, weights_BL), at most `batch_tokens` tokens each, sequences of like length together.

    Padding is on the right: a causal model needs no mask for it, and its weight is 0.
    """
    lengths = np.array([len(tokens) for tokens in data.tokens])
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = np.argsort(lengths + rng.uniform(0, 16, len(lengths)), kind="stable")
        groups: list[list[int]] = [[]]
        width = 0
        for i in order:
            width = max(width, int(lengths[i]))
            if groups[-1] and (len(groups[-1]) + 1) * width > batch_tokens:
                groups.append([])
                width = int(lengths[i])
            groups[-1].append(int(i))
        for g in rng.permutation(len(groups)):
            members, longest = groups[g], max(int(lengths[i]) for i in groups[g])
            tokens_BL = np.full((len(members), longest), pad, dtype=np.int64)
            weights_BL = np.zeros((len(members), longest), dtype=np.float32)
            for row, i in enumerate(members):
                tokens_BL[row, : lengths[i]] = data.tokens[i]
                weights_BL[row, : lengths[i]] = data.weights[i]
            yield torch.from_numpy(tokens_BL), torch.from_numpy(weights_BL)
        epoch += 1
