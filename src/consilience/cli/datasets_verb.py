"""``consilience datasets``."""

from __future__ import annotations

from typing import Any


def run() -> dict[str, Any]:
    """The embedded data sets."""
    from consilience.data.datasets import DATASETS

    return {
        name: {
            "what": info.what,
            "modalities": {m: kind.value for m, kind in info.modalities.items()},
            "rows": info.rows,
            "classes": info.classes,
            "variants": [f"{name}:{variant}" for variant in info.variants],
            "licence": info.licence,
            "source": info.source,
        }
        for name, info in DATASETS.items()
    }


def show(result: dict[str, Any]) -> None:
    for name, info in result.items():
        rows = ", ".join(f"{count} {split}" for split, count in info["rows"].items())
        print(f"{name}: {info['what']}\n  {rows}; {info['classes']} classes\n  {info['source']}; {info['licence']}")
        if info["variants"]:
            print(f"  also {', '.join(info['variants'])}")
    print(f"next    consilience train romo --data {next(iter(result))} -o runs/romo")
