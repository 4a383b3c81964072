from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.features import (
    decode_regions,
    decode_vector,
    is_reference,
    npy_array,
    npy_file,
    reference,
    shape_of,
)
from consilience.errors import InputError

from .conftest import npy, npz

RNG = np.random.default_rng(0)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, np.ndarray]:
    values = RNG.normal(size=(6, 4, 3)).astype(np.float16)
    np.save(tmp_path / "train_ims.npy", values)
    return tmp_path / "train_ims.npy", values


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "i1", "u1", "<i8", ">i2"])
@pytest.mark.parametrize("fortran", [False, True])
def test_regions_of_every_number_type(dtype: str, fortran: bool) -> None:
    values = RNG.integers(-3 if dtype != "u1" else 0, 100, (3, 5)).astype(dtype)
    data = npy(np.asfortranarray(values) if fortran else values)
    out = decode_regions(data, 4, 5)
    assert out.dtype == np.float32
    assert shape_of(data) == (3, 5)
    np.testing.assert_array_equal(out[:3], values.astype(np.float32))
    assert not out[3].any()
    assert out.flags.writeable, "torch.from_numpy needs it"


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_padding_is_zeros_and_the_rest_is_unchanged(d: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=d)
    if d > width:
        with pytest.raises(InputError, match=rf"vector_width {d}"):
            decode_vector(npy(values), width)
        return
    slow = [np.float32(values[i]) if i < d else np.float32(0) for i in range(width)]
    np.testing.assert_array_equal(decode_vector(npy(values), width), np.array(slow))


def test_errors_name_the_flag() -> None:
    data = npy(np.zeros((5, 7)))
    with pytest.raises(InputError, match=r"5 regions, more than 4; set --method\.encoders\.regions 5"):
        decode_regions(data, 4, 7)
    for width in (6, 8):
        with pytest.raises(InputError, match=rf"7 wide, not {width}; set --method\.encoders\.region_width 7"):
            decode_regions(data, 5, width)
    with pytest.raises(InputError, match=r"expected \[regions, width\]"):
        decode_regions(npy(np.zeros(7)), 5, 7)
    with pytest.raises(InputError, match="one vector"):
        decode_vector(data, 7)
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(InputError, match="NaN, infinite or huge"):
            decode_regions(npy(np.array([[0, bad]])), 1, 2)
        with pytest.raises(InputError, match="NaN, infinite or huge"):
            decode_vector(npy(np.array([0, bad])), 2)


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", npz(a=np.zeros(3)), npy(np.zeros(9))[:-1], npy(np.zeros(9))[:40], b"\x93NUMPY\x09\x09"],
    ids=["empty", "text", "npz", "cut", "header cut", "version"],
)
def test_broken_arrays_are_input_errors(data: bytes) -> None:
    with pytest.raises(InputError, match="broken NumPy file"):
        decode_vector(data, 9)


def test_objects_and_words_are_refused() -> None:
    # a pickle in a .npy file is never opened, whatever it would do
    objects = np.array([1, "a"], dtype=object)
    with pytest.raises(InputError, match="Python objects"):
        npy_array(npy(objects))
    with pytest.raises(InputError, match="real numbers"):
        decode_vector(npy(np.array(["a", "b"])), 2)
    with pytest.raises(InputError, match="real numbers"):
        decode_vector(npy(np.array([1j])), 2)


def test_a_reference_reads_its_row(saved: tuple[Path, np.ndarray]) -> None:
    path, values = saved
    for row in (0, 5, 2):
        data = reference(path, row)
        assert is_reference(data)
        assert not is_reference(npy(values))
        assert len(data) < 100 + len(str(path))
        assert shape_of(data) == (4, 3)
        np.testing.assert_array_equal(decode_regions(data, 4, 3), values[row].astype(np.float32))
        np.testing.assert_array_equal(decode_regions(data, 6, 3), decode_regions(npy(values[row]), 6, 3))
    np.save(path.with_name("v.npy"), values[:, 0])
    np.testing.assert_array_equal(decode_vector(reference(path.with_name("v.npy"), 3), 3), values[3, 0])


def test_a_relative_path_is_kept_absolute(saved: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved[0].parent)
    data = reference(Path(saved[0].name), 1)
    monkeypatch.chdir("/")
    assert decode_regions(data, 4, 3).any()


def test_masked_regions_are_zeros_even_when_they_hold_nan(saved: tuple[Path, np.ndarray]) -> None:
    path, values = saved
    values[2, 1] = np.nan
    np.save(path, values)
    mask = np.ones((6, 4), np.uint8)
    mask[2, 1:3] = 0
    np.save(path.with_name("mask.npy"), mask)
    out = decode_regions(reference(path, 2, path.with_name("mask.npy")), 4, 3)
    assert not out[1:3].any()
    np.testing.assert_array_equal(out[[0, 3]], values[2][[0, 3]])
    np.save(path.with_name("mask.npy"), mask[:, :3])
    with pytest.raises(InputError, match="mask has shape"):
        decode_regions(reference(path, 2, path.with_name("mask.npy")), 4, 3)


def test_missing_changed_and_cut_files(saved: tuple[Path, np.ndarray]) -> None:
    path, values = saved
    data = reference(path, 5)
    decode_regions(data, 4, 3)
    np.save(path, values + 1)  # same size: the new values are read, not those of the old file
    np.testing.assert_array_equal(decode_regions(data, 4, 3), (values + 1)[5])
    np.save(path, values[:5])
    with pytest.raises(InputError, match=r"train_ims\.npy row 5: the file changed since the import"):
        decode_regions(data, 4, 3)
    np.save(path, values)
    decode_regions(data, 4, 3)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"not a usable .npy file .*truncated"):
        decode_regions(data, 4, 3)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read .*No such file"):
        decode_regions(data, 4, 3)


def test_references_that_cannot_be() -> None:
    with pytest.raises(InputError, match="damaged reference"):
        decode_regions(b"consilience.row {", 4, 3)
    with pytest.raises(InputError, match="damaged reference"):
        decode_regions(b'consilience.row {"path": "/x"}', 4, 3)


def test_row_numbers_and_layout_are_checked(saved: tuple[Path, np.ndarray]) -> None:
    path, values = saved
    with pytest.raises(InputError, match="has 6 rows, no row 6"):
        decode_regions(reference(path, 6), 4, 3)
    negative = reference(path, 0).replace(b'"row":0', b'"row":-1')
    assert json.loads(negative.split(b" ", 1)[1])["row"] == -1
    with pytest.raises(InputError, match="no row -1"):
        decode_regions(negative, 4, 3)
    np.save(path, np.asfortranarray(values))
    with pytest.raises(InputError, match="stored by column"):
        decode_regions(reference(path, 0), 4, 3)
    np.save(path, np.array("word"))
    with pytest.raises(InputError, match="expected rows of numbers"):
        npy_file(path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(saved: tuple[Path, np.ndarray], method: str) -> None:
    references = [reference(saved[0], row) for row in range(6)]
    here = [decode_regions(data, 4, 3) for data in references]
    assert pickle.loads(pickle.dumps(references)) == references
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        there = list(pool.map(partial(decode_regions, regions=4, width=3), references * 5))
    np.testing.assert_array_equal(np.stack(there), np.stack(here * 5))


def test_reading_a_gigabyte_keeps_memory_small(tmp_path: Path) -> None:
    # 1 GB with holes: rows are read as zeros without occupying the disk
    path = tmp_path / "train_ims.npy"
    shape, start = (9700, 36, 768), 128
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        assert file.tell() == start
        file.truncate(start + 4 * int(np.prod(shape)))
    assert path.stat().st_size > 1e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in np.random.default_rng(0).permutation(shape[0]).tolist():
        decode_regions(reference(path, row), 36, 768)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 100e6
