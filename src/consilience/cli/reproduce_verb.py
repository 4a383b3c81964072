"""``consilience reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(
    method: str,
    data: str | None = None,
    seeds: int = 3,
    out: str | None = None,
    plan: str | None = None,
    set: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """A paper's claimed effect against ablations and baselines, on equal terms and paired by seed.

    Args:
        method: The method (see consilience methods).
        data: A data set's name, a Table or a source; default the experiment's own.
        seeds: Number of seeds; fewer than 2 give no interval.
        out: Folder of the experiment (-o); default runs/reproduce-METHOD-DATA. Finished entries found there are reused.
        plan: The experiment: a YAML file or the name of one that ships (romo-ablations, say); default the method's.
        set: Method options under every entry alike: encoders.image_size=64,batch_size=50.
    """
    import yaml

    from consilience.cli.parsing import pairs
    from consilience.evaluation.reproduce import reproduce

    common: dict[str, Any] = {}
    for name, value in (pairs(set, "--set") or {}).items():
        target, *path = common, *name.split(".")
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = yaml.safe_load(value)
    label = Path(data).name if data else "default"
    place = Path(out or f"runs/reproduce-{plan or method}-{label}")
    return reproduce(method, place, data=data, seeds=seeds, plan=plan, method_config=common, quiet=quiet)


def show(result: dict[str, Any]) -> None:
    for name in result["entries"]:
        entry = result["results"][name]
        low, high = entry["ci95"]
        spread = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        print(f"{name:<52} {entry['mean']:.3f}{spread}")
    print(f"{result['claim']}:")
    for margin in result["margins"]:
        spread = "no interval" if margin["ci95"][0] is None else "[{:+.3f}, {:+.3f}]".format(*margin["ci95"])
        verdict = "holds" if margin["holds"] else "not shown"
        print(f"  {margin['of']} over {margin['over']}: margin {margin['mean']:+.3f} {spread}: {verdict}")
    if result["margin"]["ci95"][0] is None:
        print("an interval needs more than one seed: --seeds 3 goes on from what is there")
    print(f"report  {result['report']}")
