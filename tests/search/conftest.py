from __future__ import annotations

from tests.cli.conftest import cli, made, refused, table

__all__ = ["cli", "made", "refused", "table"]
