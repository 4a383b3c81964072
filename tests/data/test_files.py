"""Folders that appear whole: what a kill leaves is cleared away, what others are writing is not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from consilience.files import new_folder


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\nfrom consilience.files import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as place:\n"
        "    (place / 'part').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=False)
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".index.")
    other = tmp_path / f".index.{platform.node()}-{os.getppid()}-abc"  # of a process that lives
    other.mkdir()
    with new_folder(tmp_path / "index") as place:
        (place / "part").write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["index", other.name])
    assert (tmp_path / "index" / "part").read_text() == "whole"
