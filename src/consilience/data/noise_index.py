"""Noise files of image-text matching: which image each training caption is paired with.

The files that Huang et al. ("Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021) made
for Flickr30K and COCO, and that later methods share, are int64 vectors with one entry a *caption*: the number
of the image it is trained with. Without noise, caption j belongs to image j // k for k captions an image.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from consilience.errors import InputError
from consilience.files import write_bytes

_log = logging.getLogger(__name__)


def draw_noise_index(captions: int, per_image: int, ratio: float, seed: int) -> Int64[np.ndarray, " captions"]:
    """Noise as the authors draw it: floor(ratio * captions) random positions have their image numbers
    shuffled among themselves; some keep their own by chance, and every image keeps its number of captions.

    Raises :class:`InputError` for a ratio outside 0..1 and captions that are no multiple of ``per_image``.
    """
    if captions < 0 or per_image < 1 or captions % per_image:
        raise InputError(f"{captions} captions are no multiple of {per_image} an image")
    return shuffle_groups(np.arange(captions, dtype=np.int64) // per_image, ratio, seed)


def shuffle_groups(groups: Int64[np.ndarray, " n"], ratio: float, seed: int) -> Int64[np.ndarray, " n"]:
    """:func:`draw_noise_index` for any numbers of captions an image: ``groups`` are the captions' own images.

    Raises :class:`InputError` for a ratio outside 0..1.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio} of noise; give a number from 0 to 1")
    rng = np.random.default_rng(seed)
    index = np.array(groups, dtype=np.int64)
    # the small addition makes 0.7 * 10 = 7 although the product is 6.999...
    chosen = rng.permutation(len(index))[: int(np.floor(ratio * len(index) + 1e-9))]
    index[chosen] = index[rng.permutation(chosen)]
    return index


def read_noise_index(path: Path, captions: int, images: int, per_image: int) -> Int64[np.ndarray, " captions"]:
    """The noise file ``path`` (.npy) for ``captions`` captions of ``images`` images.

    Raises :class:`InputError` for a file that is missing, no vector of whole numbers, of another length, or
    naming an image that is not there; a vector that is no reordering of j // ``per_image`` is logged as a
    warning, because the published ones are.
    """
    try:
        index = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = "does not exist" if not Path(path).exists() else "is no readable .npy file"
        raise InputError(f"noise file {path} {what}; give the full name of a .npy file") from error
    if not isinstance(index, np.ndarray) or index.ndim != 1 or index.dtype.kind not in "iu":
        raise InputError(f"noise file {path} is not one vector of whole numbers; expected an image number a caption")
    if len(index) != captions:
        raise InputError(
            f"noise file {path} has {len(index)} entries for {captions} captions; it belongs to another data set"
        )
    index = index.astype(np.int64)
    wrong = np.flatnonzero((index < 0) | (index >= images))
    if wrong.size:
        raise InputError(
            f"noise file {path}: entry {int(wrong[0])} is image {int(index[wrong[0]])}, but there are {images} images"
        )
    if not np.array_equal(np.bincount(index, minlength=images), np.bincount(np.arange(captions) // per_image)):
        _log.warning("%s does not keep %d captions for every image, as shuffled noise would", path, per_image)
    return index


def write_noise_index(path: Path, index: Int64[np.ndarray, " captions"]) -> None:
    """Write ``index`` to exactly ``path`` (numpy would append ".npy" to another name), atomically."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(index, dtype=np.int64))
    write_bytes(Path(path), stream.getvalue())


def true_pairs(index: Int64[np.ndarray, " captions"], per_image: int) -> Bool[np.ndarray, " captions"]:
    """Where a caption is paired with its own image: index[j] = j // per_image."""
    own: np.ndarray = np.asarray(index) == np.arange(len(index)) // per_image
    return own


def partners(
    index: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Which row each caption takes its image from: ``Loader(partners={"image": ...})``.

    ``groups``: image number of every row, in the numbering of ``index`` and the order of the captions.
    ``rows``: the rows' offsets in the Table. Entry j is the offset of the first row whose group is index[j];
    a caption that keeps its image keeps its own row. Raises :class:`InputError` for lengths that differ and
    for an image that no row shows.
    """
    index, groups, rows = (np.asarray(values, dtype=np.int64) for values in (index, groups, rows))
    if not index.shape == groups.shape == rows.shape:
        raise InputError(f"{len(index)} noise entries, {len(groups)} image numbers, {len(rows)} rows; give one each")
    if not len(index):
        return rows.copy()
    present, first = np.unique(groups, return_index=True)
    place = np.minimum(np.searchsorted(present, index), len(present) - 1)
    absent = np.flatnonzero(present[place] != index)
    if absent.size:
        raise InputError(f"noise entry {int(absent[0])} is image {int(index[absent[0]])}, which no row shows")
    return np.where(groups == index, rows, rows[first[place]])
