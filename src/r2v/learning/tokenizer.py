"""A word-level tokenizer for models trained from scratch on household text.

An entity ("cabinet 2") is one token, and so are the set phrases below: a tiny model learns to copy one token long before
it learns to copy two. Words that carry nothing are dropped, so observations are read with loss; actions decode exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_PHRASES = (
    "go to", "arrive at", "are in middle of room looking quickly around", "nothing happens", "are not carrying anything",
    "are carrying:", "pick up", "error: request timed out",
)  # fmt: skip
_DROPPED = r"\b(?:a|an|the|you|see|your|is|in it|on the)\b|,? and\b|,|\.(?!\.)(?<!\.\.)"
_PIECES = "|".join(re.escape(phrase) for phrase in _PHRASES) + r"|[a-z]+ \d+|in/on|[a-z]+|\.{3}|\S"


def train_tokenizer(texts: Iterable[str], *, max_vocabulary: int = 4096) -> Any:
    """A tokenizer whose vocabulary holds every piece of `texts` (the most frequent ones if there are too many)."""
    tokenizer = Tokenizer(WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(_DROPPED), " "), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))[:max_vocabulary]
    vocabulary = {piece: i for i, piece in enumerate((PAD, BOS, EOS, UNKNOWN, *sorted(pieces)))}
    tokenizer.model = WordLevel(vocabulary, unk_token=UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
