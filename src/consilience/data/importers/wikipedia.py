"""The Wikipedia image and text features of Rasiwasia et al. (ACM MM 2010) in one NumPy archive.

``wikipedia_features.npz``: for the splits ``train`` and ``test`` SIFT bags of words (128), LDA topics (10)
and a class number, one picture and one article section a row, with the ten names of the classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from consilience.data.reading import Reading, npy_bytes
from consilience.data.schema import Kind
from consilience.data.table import Row
from consilience.errors import InputError

WIKIPEDIA = "wikipedia_features.npz"
_ARRAYS = {"image": "img", "text": "txt"}
_KINDS = {"image": Kind.VECTOR, "text": Kind.VECTOR}


def read_wikipedia(path: Path) -> Reading:
    """Open the archive, or a folder that holds it: vectors ``image`` and ``text``, the class as label, the
    original split. Row i of a split is a true pair.

    Raises :class:`InputError` when the file cannot be read, an array is missing or lengths differ.
    """
    path = path / WIKIPEDIA if path.is_dir() else path
    names = [f"{part}_{split}" for split in ("train", "test") for part in (*_ARRAYS.values(), "y")]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in (*names, "categories")}
    except KeyError as error:
        raise InputError(f"{path} lacks an array ({error.args[0]}); expected {', '.join(names)}, categories") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable npz file; download it again") from error
    for split in ("train", "test"):
        shapes = [arrays[f"{part}_{split}"].shape for part in (*_ARRAYS.values(), "y")]
        if [len(shape) for shape in shapes] != [2, 2, 1] or len({shape[0] for shape in shapes}) > 1:
            raise InputError(f"{path}: the {split} arrays are {shapes}; expected [n, d], [n, d] and [n]")
        codes = arrays[f"y_{split}"]
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(arrays["categories"]):
            raise InputError(
                f"{path}: y_{split} has a class outside 0..{len(arrays['categories']) - 1}; download it again"
            )
    return Reading(str(path), dict(_KINDS), _rows(path, arrays))


def _rows(path: Path, arrays: dict[str, np.ndarray]) -> Iterator[Row]:
    for split in ("train", "test"):
        for i, code in enumerate(arrays[f"y_{split}"].tolist()):
            yield Row(
                id=f"{split}-{i:05d}",
                split=split,
                label=str(arrays["categories"][code]),
                values={name: npy_bytes(arrays[f"{part}_{split}"][i]) for name, part in _ARRAYS.items()},
                origins={name: f"{path.name}::{part}_{split}[{i}]" for name, part in _ARRAYS.items()},
            )
