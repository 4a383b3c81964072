"""Made-up pages with the noise of the web, in the layout of Noise of Web and with the truth beside them.

A *template* is a set of attributes. A page of a template has regions near the prototypes of its attributes and
a caption of words for them, so what goes together is known. :func:`make_templates` writes clean pairs, to
which noise is added by a noise index; :func:`make_web_noise` writes pairs that carry the three kinds of
mismatch that crawled pages show: the caption of another page, one of a few captions that many pages share,
and random words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilience.data.now import FOLDER, Page, write_split
from consilience.data.text import MARKERS
from consilience.errors import InputError
from consilience.files import new_folder, write_json

MATCHED, SWAPPED, BOILERPLATE, JUNK = range(4)
"""What ``{split}_truth.npy`` says of a pair."""
TEMPLATES, ATTRIBUTES, PER_TEMPLATE = 200, 40, 4
_WORDS_EACH, _WORDS, _FILLERS = 2, 10, 20
_NOISE = 1.5
_BOILERPLATES = 20
_CODE = "bpe"
_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class _World:
    """Prototypes [attributes, width], the attributes of every template [templates, 4], and the random source."""

    prototypes: np.ndarray
    templates: np.ndarray
    rng: np.random.Generator

    @classmethod
    def draw(cls, width: int, seed: int) -> _World:
        rng = np.random.default_rng(seed)
        prototypes = rng.normal(size=(ATTRIBUTES, width))
        templates = np.stack([rng.permutation(ATTRIBUTES)[:PER_TEMPLATE] for _ in range(TEMPLATES)])
        return cls(prototypes, templates, rng)

    def regions(self, template: int, count: int) -> np.ndarray:
        """[count, width]: prototypes of the template's attributes in turn, shuffled, plus normal noise."""
        chosen = self.rng.permutation(np.resize(self.templates[template], count))
        values: np.ndarray = self.prototypes[chosen] + _NOISE * self.rng.normal(size=(count, self.prototypes.shape[1]))
        return values

    def words(self, template: int) -> list[int]:
        attributes = self.rng.choice(self.templates[template], _WORDS)
        which = self.rng.integers(0, _WORDS_EACH, _WORDS)
        return [len(MARKERS) + int(a) * _WORDS_EACH + int(w) for a, w in zip(attributes, which)]


def make_templates(out: Path, n: int = 2000, *, regions: int = 12, width: int = 32, seed: int = 0) -> Path:
    """Write ``n`` clean training pairs of randomly drawn templates, and one validation and one test pair of each of
    the 200 templates; return the data folder, ready for import.

    A template is 4 of 40 attributes. A picture has ``regions`` vectors of ``width`` values, each the prototype of
    one of its attributes plus 1.5 N(0, 1); a caption has 10 words, two words being known for each attribute.
    ``{split}_template.npy``, int64, tells the templates. The same seed gives the same bytes. Raises
    :class:`InputError` when ``out`` holds something already, and for sizes below one.
    """
    return _make(Path(out), n, 0.0, (1.0, 0.0, 0.0), (), regions, regions, width, seed)


def make_web_noise(
    out: Path,
    n: int,
    ratio: float = 0.7,
    mix: tuple[float, float, float] = (0.5, 0.35, 0.15),
    *,
    noisy: Sequence[str] = ("train", "dev"),
    regions: int = 36,
    width: int = 32,
    seed: int = 0,
) -> Path:
    """Write ``n`` training pairs with noise, and dev and test splits of one pair a template; return the folder.

    In each split that ``noisy`` names, exactly floor(ratio * pairs) pairs are mismatched; ``mix`` is the expected
    share of captions swapped among pages, of boilerplate (20 fixed captions with Zipf weights) and of random
    words. Swapped captions move along one cycle; two pages of one template may meet by chance and count as
    swapped. A page has between a third of ``regions`` and ``regions`` vectors, then padding.

    Beside the layout of the release (``now100k_precomp`` and ``vocab`` below ``out``) lie ``{split}_truth.npy``,
    uint8 (0 matched, 1 swapped, 2 boilerplate, 3 junk), and ``{split}_template.npy``, int64, the page's
    template. The same seed gives the same bytes. Raises :class:`InputError` for shares outside 0..1 or not
    summing to one, unknown splits, and an ``out`` that holds something already.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio} of noise; give a number from 0 to 1")
    if len(mix) != 3 or min(mix) < 0 or abs(sum(mix) - 1) > 1e-9:
        raise InputError(f"mix {mix}; give the shares of swapped, boilerplate and junk captions, together 1")
    if unknown := set(noisy) - set(_SPLITS):
        raise InputError(f"unknown split {min(unknown)!r} in noisy; known: {', '.join(_SPLITS)}")
    return _make(Path(out), n, ratio, mix, noisy, max(1, regions // 3), regions, width, seed)


def _make(
    out: Path, n: int, ratio: float, mix: tuple[float, float, float], noisy: Sequence[str], fewest: int,
    regions: int, width: int, seed: int,
) -> Path:  # fmt: skip
    for name, value in (("n", n), ("regions", regions), ("width", width)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; remove it or choose another place")
    world = _World.draw(width, seed)
    rng = world.rng
    pool = rng.permutation(5 * (n + 2 * TEMPLATES))
    boilerplates = [_random_words(rng) for _ in range(_BOILERPLATES)]
    with new_folder(out) as root:
        folder = root / FOLDER
        folder.mkdir()
        used = 0
        for split in _SPLITS:
            drawn = rng.integers(0, TEMPLATES, n) if split == "train" else np.arange(TEMPLATES)
            captions = [world.words(int(template)) for template in drawn]
            truth = np.zeros(len(drawn), np.uint8)
            if split in noisy:
                truth = _truth(rng, len(drawn), ratio, mix)
                captions = _spoiled(rng, captions, truth, boilerplates)

            def pages(
                drawn: np.ndarray = drawn, captions: list[list[int]] = captions, used: int = used
            ) -> Iterator[Page]:
                for place, template in enumerate(drawn.tolist()):
                    features = world.regions(template, int(rng.integers(fewest, regions + 1)))
                    yield Page(features, {_CODE: captions[place]}, str(pool[used + place]))

            write_split(folder, split, len(drawn), (regions, width), (_CODE,), pages())
            np.save(folder / f"{split}_truth.npy", truth)
            np.save(folder / f"{split}_template.npy", drawn.astype(np.int64))
            used += len(drawn)
        (root / "vocab").mkdir()
        write_json(root / "vocab" / f"{FOLDER}_vocab_{_CODE}.json", _vocabulary())
    return out / FOLDER


def _truth(rng: np.random.Generator, n: int, ratio: float, mix: tuple[float, float, float]) -> np.ndarray:
    # the small addition makes 0.7 * 10 = 7 although the product is 6.999...
    chosen = rng.permutation(n)[: int(np.floor(ratio * n + 1e-9))]
    kinds = rng.choice([SWAPPED, BOILERPLATE, JUNK], size=len(chosen), p=mix)
    if (kinds == SWAPPED).sum() == 1:  # one page has nobody to swap with
        kinds[kinds == SWAPPED] = BOILERPLATE
    truth = np.full(n, MATCHED, np.uint8)
    truth[chosen] = kinds
    return truth


def _spoiled(
    rng: np.random.Generator, captions: list[list[int]], truth: np.ndarray, boilerplates: list[list[int]]
) -> list[list[int]]:
    found = list(captions)
    swapped = rng.permutation(np.flatnonzero(truth == SWAPPED))
    for place, source in zip(swapped.tolist(), np.roll(swapped, 1).tolist()):
        found[place] = captions[source]
    weights = 1 / np.arange(1, len(boilerplates) + 1)
    for place in np.flatnonzero(truth == BOILERPLATE).tolist():
        found[place] = boilerplates[int(rng.choice(len(boilerplates), p=weights / weights.sum()))]
    for place in np.flatnonzero(truth == JUNK).tolist():
        found[place] = _random_words(rng)
    return found


def _random_words(rng: np.random.Generator) -> list[int]:
    count = int(rng.integers(1, 2 * _WORDS))
    return [len(MARKERS) + int(word) for word in rng.integers(0, ATTRIBUTES * _WORDS_EACH + _FILLERS, count)]


def _vocabulary() -> dict[str, object]:
    words = [f"attribute{a}_{w}" for a in range(ATTRIBUTES) for w in range(_WORDS_EACH)]
    names = [*MARKERS, *words, *(f"filler{i}" for i in range(_FILLERS))]
    return {
        "word2idx": {name: code for code, name in enumerate(names)},
        "idx2word": {str(code): name for code, name in enumerate(names)},
        "idx": len(names),
    }
