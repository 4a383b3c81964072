"""Networks that score pairs of two modalities: a dual encoder with a cosine, or slots (regions, words) under SGRAF;
and several such networks side by side, as in co-teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from consilience.data.schema import Batch, Modalities
from consilience.distributed import gather_rows
from consilience.encoders.base import SlotEncoder
from consilience.encoders.build import EncoderConfig, build_encoder
from consilience.errors import InputError
from consilience.heads.sgraf import SGRAF
from consilience.heads.towers import Towers
from consilience.views.geometry import ViewConfig, plain, view


@dataclass(frozen=True)
class ScorerConfig:
    """How a network scores a pair."""

    name: Literal["cosine", "sgr", "saf", "sgraf"] = "cosine"
    """cosine: of one vector a modality, any encoders. sgr, saf (Diao et al., AAAI 2021) or the mean of both (sgraf):
    similarity reasoning over regions and words; the paper's setting is sgr on region features and a GRU."""
    width: int = 64
    """Dimension of the common space under cosine."""
    sim: int = 256
    """Dimension of SGRAF's similarity vectors."""
    steps: int = 3
    """Rounds of similarity reasoning (sgr)."""
    slots: int = 36
    """Regions an image under SGRAF's batch norm, which has a channel a region."""
    batch_norm: bool = True
    """SGRAF's batch norm in the attention over regions (the paper's); needs exactly ``slots`` regions."""


@dataclass(frozen=True)
class Seen:
    """One modality of a batch as one network sees it."""

    vectors: Float[Tensor, "b d"]
    """Unit vectors: of the tower, or of the sum of the slots."""
    slots: Float[Tensor, "b l e"]
    """Unit slots under SGRAF, else the vectors as one slot."""
    mask: Bool[Tensor, "b l"]
    """Which slots are there."""

    def part(self, chosen: Tensor) -> Seen:
        """The same for some rows: a mask bool [b] or positions int64 [m]."""
        return Seen(self.vectors[chosen], self.slots[chosen], self.mask[chosen])

    def flat(self) -> Float[Tensor, "b r"]:
        """Slots and mask as one row a sample; :meth:`unflat` undoes it."""
        return torch.cat([self.slots.flatten(1), self.mask.float()], 1)

    @staticmethod
    def unflat(rows: Float[Tensor, "b r"], width: int) -> Seen:
        count = rows.shape[1] // (width + 1)
        slots = rows[:, : count * width].reshape(len(rows), count, width)
        return Seen(slots.mean(1), slots, rows[:, count * width :] > 0.5)


class Matcher(nn.Module):
    """Encoders of two modalities and a scorer. Rows are assumed to have both."""

    def __init__(self, config: ScorerConfig, encoders: EncoderConfig, modalities: Modalities) -> None:
        super().__init__()
        self.config, self.kinds = config, dict(modalities)
        self.first, self.second = two(modalities)
        self.towers: Towers | None = None
        if config.name == "cosine":
            self.towers = Towers(encoders, modalities, config.width, encoders.neighbours, False)
            self.width = config.width
            return
        self.encoders, self.joints, self.width = nn.ModuleDict(), nn.ModuleDict(), encoders.embed
        for name, kind in modalities.items():
            encoder = build_encoder(kind, encoders)
            if not isinstance(encoder, SlotEncoder):
                raise InputError(
                    f"--method.scorer.name {config.name} compares parts, and the encoder of {name} ({kind.value}) has "
                    "none; use regions, text, or images under small, vit or hf:..., or --method.scorer.name cosine"
                )
            self.encoders[name] = encoder
            own = encoder.slot_width == encoders.embed
            self.joints[name] = nn.Identity() if own else nn.Linear(encoder.slot_width, encoders.embed)
        module: Literal["sgr", "saf", "both"] = "both" if config.name == "sgraf" else config.name
        self.sgraf = SGRAF(encoders.embed, config.sim, module, config.steps, config.slots, config.batch_norm)

    def look(
        self, batch: Batch, name: str, key: tuple[int, ...] | None = None, views: ViewConfig | None = None
    ) -> Seen:
        """Modality ``name`` of this process's rows; under ``key`` a random view of it, else the sample itself."""
        kind, value = self.kinds[name], batch.values[name]
        x = plain(value, kind) if key is None or views is None else view(value, kind, batch.index, key, views)
        if self.towers is not None:
            vectors = F.normalize(self.towers[name](x).float(), dim=1)
            return Seen(vectors, vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))
        encoder = self.encoders[name]
        assert isinstance(encoder, SlotEncoder)
        slots, mask = encoder.slots(x)
        slots = F.normalize(self.joints[name](slots).float(), dim=2, eps=1e-8) * mask[:, :, None]
        return Seen(F.normalize(slots.sum(1), dim=1), slots, mask)

    def vectors(self, batch: Batch, name: str) -> Float[Tensor, "b d"]:
        """Unit vectors of this process's rows for a search by cosine: SGRAF's global ones where it scores."""
        seen = self.look(batch, name)
        if self.towers is not None:
            return seen.vectors
        side = self.sgraf.globals_of_images if name == self.first else self.sgraf.globals_of_captions
        found = side(seen.slots, seen.mask)
        joined: Tensor = torch.cat(found, 1) / float(len(found)) ** 0.5
        return joined

    def scores(self, a: Seen, b: Seen, few: bool = False) -> Float[Tensor, "n m"]:
        """Scores of every row of ``a`` (first modality) with every row of ``b`` (second); ``few``: the loss reads few
        of them, as the hardest negatives (saves SGRAF's backward pass over the others)."""
        if self.towers is not None:
            return a.vectors @ b.vectors.T
        scores: Tensor = self.sgraf(a.slots, a.mask, b.slots, b.mask, few)
        return scores

    def square(self, a: Seen, b: Seen, few: bool = False) -> Float[Tensor, "n n"]:
        """:meth:`scores` of the joined batch of all processes, the same on each. Every process scores its own images
        with all captions, and the rows are gathered: exact under autograd, whatever the shares."""
        everyone = Seen(gather_rows(b.vectors), gather_rows(b.slots), gather_rows(b.mask))
        return gather_rows(self.scores(a, everyone, few))


class Peers(nn.Module):
    """Networks of one architecture, initialised independently, whose scores are averaged in use."""

    def __init__(
        self, count: int, config: ScorerConfig, encoders: EncoderConfig, views: ViewConfig, modalities: Modalities
    ) -> None:
        super().__init__()
        self.views = views
        self.nets = nn.ModuleList(Matcher(config, encoders, modalities) for _ in range(count))
        self.names = two(modalities)

    def __len__(self) -> int:
        return len(self.nets)

    def net(self, number: int) -> Matcher:
        """Network ``number``."""
        found = self.nets[number]
        assert isinstance(found, Matcher)
        return found

    def pair(self, number: int, batch: Batch, key: tuple[int, ...] | None = None) -> tuple[Seen, Seen]:
        """Both modalities of a batch in network ``number``; random views under ``key``."""
        net, views = self.net(number), self.views if key is not None else None
        first, second = (
            net.look(batch, name, None if key is None else (*key, number, place), views)
            for place, name in enumerate(self.names)
        )
        return first, second

    def encode(self, batch: Batch, name: str) -> Float[Tensor, "b d"]:
        """Unit vectors whose cosine is the mean of the networks' cosines."""
        parts = [self.net(k).vectors(batch, name) for k in range(len(self))]
        joined: Tensor = torch.cat(parts, 1) / float(len(self)) ** 0.5
        return joined

    def represent(self, batch: Batch, name: str) -> Float[Tensor, "b r"]:
        """What :meth:`score` compares, one row a sample."""
        if self.net(0).towers is not None:
            return self.encode(batch, name)
        return torch.cat([self.net(k).look(batch, name).flat() for k in range(len(self))], 1)

    @torch.no_grad()
    def score(self, a: Float[Tensor, "n r"], b: Float[Tensor, "m s"], names: tuple[str, str]) -> Float[Tensor, "n m"]:
        """Mean score of the networks for represented rows of modalities ``names``, in either order."""
        if self.net(0).towers is not None:
            return a @ b.T
        if names != self.names:
            return self.score(b, a, self.names).T
        total = torch.zeros(len(a), len(b), device=a.device)
        for number, (left, right) in enumerate(zip(a.chunk(len(self), 1), b.chunk(len(self), 1), strict=True)):
            net = self.net(number)
            total += net.scores(Seen.unflat(left, net.width), Seen.unflat(right, net.width))
        return total / len(self)


def two(modalities: Modalities) -> tuple[str, str]:
    """The names of exactly two modalities; InputError naming the flag otherwise."""
    if len(modalities) != 2:
        raise InputError(
            f"pairs have two modalities; the data has {', '.join(modalities)}: choose two with --train.modalities A,B"
        )
    first, second = modalities
    return first, second
