"""The digits that come with scikit-learn, as rows of a Table.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (CC BY 4.0):
scikit-learn ships the 1797 pictures of its test part, 8 x 8 pixels of 0 to 16. Nothing is read but its own copy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from consilience.data.reading import png_bytes
from consilience.data.table import Row

TEST = 500
"""Rows of the test split: the last of a permutation by seed 0."""


def digit_rows() -> Iterator[Row]:
    """1297 training and 500 test rows with a grey picture each; ids are positions in scikit-learn's arrays."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    for place, i in enumerate(order.tolist()):
        yield Row(
            id=f"digit-{i:04d}",
            split="train" if place < len(order) - TEST else "test",
            label=str(found.target[i]),
            values={"image": png_bytes(pixels[i])},
            origins={"image": f"sklearn.datasets.load_digits()[{i}]"},
        )
