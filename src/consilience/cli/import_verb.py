"""``consilience import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from consilience.cli.parsing import command, pairs


def run(
    source: str,
    out: str | None = None,
    kinds: str | None = None,
    columns: str | None = None,
    tokenizer: str | None = None,
    captions: str | None = None,
    on_bad_sample: Literal["stop", "quarantine"] = "stop",
    weather: str | None = None,
    weather_seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a Table from a source.

    Args:
        source: An embedded data set's name, a manifest (.csv .parquet .jsonl), a folder, WebDataset shards (.tar), a
            folder of Hugging Face datasets, a precomp folder of image-text matching, RoMo's lists, a 3D MNIST .h5.
        out: Folder of the new Table (-o); required.
        kinds: What modalities are, where the files do not tell: image=grey,shape=mesh (rgb, grey, points, mesh, text,
            regions, vector).
        columns: Columns of a manifest that hold samples: image=img_path,text=caption.
        tokenizer: How captions become tokens: bytes, words:FILE, ids:FILE, bpe:FILE, hf:FOLDER_OR_ID, or one to fit on
            the training captions: fit-words, fit-bpe:8000. Default what the source says, else bytes.
        captions: Which captions of a Noise-of-Web folder: bpe, bert or jieba.
        on_bad_sample: stop at the first unreadable sample, or quarantine such samples and go on.
        weather: Put pictures into weather: haze=0.04,rain=0.04,snow=0.04 are shares of the training rows; test rows
            come once in each.
        weather_seed: Seed of which pictures and how.
    """
    from consilience.data.importers import import_table
    from consilience.errors import InputError

    if out is None:
        raise InputError("consilience import needs a place for the Table: -o FOLDER")

    table = import_table(
        source,
        Path(out),
        kinds=pairs(kinds, "--kinds"),
        columns=pairs(columns, "--columns"),
        tokenizer=tokenizer,
        captions=captions,
        on_bad_sample=on_bad_sample,
        weather=shares(pairs(weather, "--weather")),
        weather_seed=weather_seed,
    )
    listed = table.path / "quarantine.jsonl"
    return {
        "table": str(table.path),
        "rows": len(table),
        "modalities": {name: kind.value for name, kind in table.modalities.items()},
        "quarantined": len(listed.read_text().splitlines()) if listed.exists() else 0,
        "data_version": table.fingerprint(),
    }


def shares(given: dict[str, str] | None) -> dict[str, float] | None:
    """The values of ``--weather`` as numbers; InputError for one that is none."""
    from consilience.errors import InputError

    if given is None:
        return None
    try:
        return {name: float(value) for name, value in given.items()}
    except ValueError as error:
        said = ",".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"--weather {said}: expected shares such as haze=0.04,rain=0.04") from error


def show(result: dict[str, Any]) -> None:
    kinds = ", ".join(f"{name} ({kind})" for name, kind in result["modalities"].items())
    print(f"{result['table']}: {result['rows']} rows; {kinds}")
    if result["quarantined"]:
        print(f"{result['quarantined']} unreadable samples set aside: {result['table']}/quarantine.jsonl")
    print(f"next    {command('check', result['table'])}")
