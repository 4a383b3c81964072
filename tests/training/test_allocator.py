"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from consilience.training.allocator import keep_freed_memory

CODE = """
import sys
import torch
from pathlib import Path
from consilience.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
before = resident()
tensors = [torch.ones(1 << 20) for _ in range(60)]
full = resident() - before
del tensors
print((resident() - before) / full)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not keep_freed_memory(), reason="needs glibc's malloc")
def test_tensors_of_a_step_are_not_asked_of_the_kernel_again():
    """240 MB are freed. Under a fixed threshold (glibc moves its own as it learns) all of it goes back to the kernel,
    unless it is told to keep it."""
    share = {}
    for what in ("keep", "default"):
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        words = [sys.executable, "-c", CODE, what]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        share[what] = float(done.stdout)
    assert share["keep"] > 0.9, share
    assert share["default"] < 0.1, share
