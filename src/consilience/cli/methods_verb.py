"""``consilience methods``."""

from __future__ import annotations

from typing import Any


def run() -> dict[str, Any]:
    """The methods there are."""
    from consilience.methods.registry import methods

    return {
        name: {"title": info.title, "paper": info.paper, "kinds": list(info.kinds)} for name, info in methods().items()
    }


def show(result: dict[str, Any]) -> None:
    for name, info in result.items():
        print(f"{name:<10} {info['title']}\n{'':<10} {info['paper']}\n{'':<10} takes {', '.join(info['kinds'])}")
    print(f"next    consilience train {next(iter(result))} --help")
