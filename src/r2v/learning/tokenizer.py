"""A word-level tokenizer for models trained from scratch, made of a domain's pieces of text.

Observations are read with loss (case, and what the domain drops); actions decode exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


def train_tokenizer(texts: Iterable[str], *, pieces: str, dropped: str | None = None, max_vocabulary: int = 4096) -> Any:
    """A tokenizer whose vocabulary holds every piece of `texts`, or the most frequent ones.

    Args:
        texts: all that the model will read and write.
        pieces: regular expression of one token, over text in lower case.
        dropped: regular expression of what is left out, if anything is.
        max_vocabulary: most pieces.
    """
    tokenizer = Tokenizer(WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    gone = [normalizers.Replace(Regex(dropped), " ")] if dropped is not None else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *gone, normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    kept = sorted(counts, key=lambda piece: (-counts[piece], piece))[:max_vocabulary]
    vocabulary = {piece: i for i, piece in enumerate((PAD, BOS, EOS, UNKNOWN, *sorted(kept)))}
    tokenizer.model = WordLevel(vocabulary, unk_token=UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
