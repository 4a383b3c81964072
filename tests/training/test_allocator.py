"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from consilience.training.allocator import keep_freed_memory

CODE = """
import sys
import torch
from consilience.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    [torch.ones(1 << 20) for _ in range(60)]
before = faults()
for _ in range(4):
    [torch.ones(1 << 20) for _ in range(60)]
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not keep_freed_memory(), reason="needs glibc's malloc")
def test_tensors_of_a_step_are_not_asked_of_the_kernel_again():
    faults = {}
    for what in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        faults[what] = int(done.stdout)
    assert faults["keep"] < 3000, faults  # 240 tensors of 1,024 pages each, if pages are not large ones
    if faults["default"] < 3000:
        pytest.skip(f"this machine keeps freed memory by itself just now: {faults}")
    assert faults["default"] > 5 * faults["keep"], faults
