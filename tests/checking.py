"""The checker behind the annotations of the rooms that ``conftest.py`` names."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype that takes an int where a float is declared, as mypy does."""
