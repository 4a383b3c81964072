"""``consilience check``."""

from __future__ import annotations

from typing import Any


def run(data: str) -> dict[str, Any]:
    """Read every sample once and report what is wrong.

    Args:
        data: A Table, or any source that import takes.
    """
    from dataclasses import asdict

    from consilience.data.check import check

    return asdict(check(data))


def show(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}")
            for entry in value[:20]:
                print(f"  {entry}")
        else:
            print(f"{name}: {value}")
