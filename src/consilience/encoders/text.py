"""Text encoders trained from scratch. Input of all: int64 [B, T], token ids from 0 on, then -1 as padding.

Every encoder works on the longest caption of the batch only and fills up with zeros, so padding costs nothing and a
caption's vectors do not depend on its companions.
"""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from consilience.encoders.base import SlotEncoder, pad_slots, unit
from consilience.encoders.transformer import Transformer
from consilience.errors import InputError


def longest(mask: Bool[Tensor, "b t"]) -> int:
    """Places up to the last one that is used in some row, at least 1 where there are any."""
    used = mask.any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else min(1, mask.shape[1])


class TokenEncoder(SlotEncoder):
    """Subclasses turn the ids of the longest caption into one vector a token."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.width = self.slot_width = width

    def slots(self, x: Int64[Tensor, "b t"]) -> tuple[Float[Tensor, "b t slot_width"], Bool[Tensor, "b t"]]:
        """One vector a token; raises :class:`InputError` on an id outside the vocabulary."""
        mask = x >= 0
        used = longest(mask)
        ids = x[:, :used].clamp_min(0)
        if ids.numel() and int(ids.max()) >= self.vocabulary:
            raise InputError(
                f"token id {int(ids.max())} in a vocabulary of {self.vocabulary}; encode with the tokenizer of training"
            )
        return pad_slots(self.tokens(ids, mask[:, :used]), mask)

    @abstractmethod
    def tokens(self, ids: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l slot_width"]:
        """A vector for every id; what stands at padding (id 0) is thrown away."""


class BagOfWords(TokenEncoder):
    """One trained vector a token, uniform(-0.1, 0.1); ``forward`` is their mean: the fastest."""

    def __init__(self, vocabulary: int, width: int = 256) -> None:
        super().__init__(vocabulary, width)
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def tokens(self, ids: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l slot_width"]:
        """Vectors of the tokens, whatever their order."""
        out: Tensor = self.embedding(ids)
        return out


class TextTransformer(TokenEncoder):
    """Token and position vectors, pre-norm blocks that look at true tokens only, mean of the tokens."""

    def __init__(self, vocabulary: int, max_tokens: int, width: int = 128, layers: int = 2) -> None:
        super().__init__(vocabulary, width)
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.transformer = Transformer(width, layers, max_tokens)

    def tokens(self, ids: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l slot_width"]:
        """Vectors in context; raises :class:`InputError` on more tokens than there are positions."""
        if ids.shape[1] > self.max_tokens:
            raise InputError(f"a text of {ids.shape[1]} tokens for max_tokens={self.max_tokens}; cut it to that")
        seen = mask | F.pad(mask.new_ones(len(mask), 1), (0, mask.shape[1] - 1))  # an empty text looks at place 0
        out: Tensor = self.transformer(self.embedding(ids), seen)
        return out


class GRUText(TokenEncoder):
    """SGRAF's text encoder (Diao et al., AAAI 2021): embedding of 300, uniform(-0.1, 0.1), dropout 0.4, one
    bidirectional GRU whose directions are averaged, unit length a word. ``forward`` is the mean of the unit vectors.
    """

    def __init__(self, vocabulary: int, width: int = 1024, embedding: int = 300, dropout: float = 0.4) -> None:
        super().__init__(vocabulary, width)
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(embedding, width, batch_first=True, bidirectional=True)

    def tokens(self, ids: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l slot_width"]:
        """Unit vectors in context; the backward direction starts at each text's own last token."""
        lengths = mask.sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(self.dropout(self.embedding(ids)), lengths, True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], True, total_length=ids.shape[1])
        forwards, backwards = states.chunk(2, -1)
        return unit((forwards + backwards) / 2)
