"""A report is one self-contained HTML file: text, tables and pictures, nothing from outside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consilience.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #ffffff; --line: #d8dce0; --soft: #5d666f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --line: #353b41; --soft: #9aa4ad; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 6px; }
figcaption, .soft { color: var(--soft); font-size: .9rem; }
.warning { border-left: 4px solid #c77700; padding-left: .8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .7rem; font-size: .85rem; line-height: 1.35; }
.card b, .card p { overflow-wrap: anywhere; } .card p { margin: .15rem 0 .5rem; color: var(--soft); }
.card .parts { display: flex; flex-wrap: wrap; gap: .5rem; }
.card figure { margin: 0; width: 5.6rem; } .card figure.words { width: 100%; }
.card img { width: 100%; border-radius: 4px; image-rendering: auto; display: block; }
.card blockquote { margin: 0; padding: .3rem .5rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
.card figcaption { font-size: .75rem; overflow-wrap: anywhere; }
"""


class Report:
    """Collects parts in order; :meth:`save` writes them."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph; ``kind`` is "", "soft" or "warning"."""
        self._parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; floats are shown with three decimals."""

        def cells(tag: str, values: Sequence[Any]) -> str:
            shown = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)
            return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in shown)

        body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>")

    def figure(self, figure: Any, caption: str) -> None:
        """A matplotlib figure as an embedded PNG."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
        picture = base64.b64encode(buffer.getvalue()).decode()
        shown = html.escape(caption)
        self._parts.append(
            f'<figure><img alt="{shown}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{shown}</figcaption></figure>"
        )

    def cards(self, cards: Sequence[tuple[str, str, Sequence[tuple[str, bytes | str]]]]) -> None:
        """A grid of small cards: title, note, and parts, each a caption with a PNG (bytes) or a text."""

        def part(caption: str, content: bytes | str) -> str:
            below = f"<figcaption>{html.escape(caption)}</figcaption>"
            if isinstance(content, str):
                return f'<figure class="words"><blockquote>{html.escape(content)}</blockquote>{below}</figure>'
            picture = base64.b64encode(content).decode()
            return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">{below}</figure>'

        made = (
            f'<div class="card"><b>{html.escape(title)}</b><p>{html.escape(note)}</p>'
            f'<div class="parts">{"".join(part(*one) for one in parts)}</div></div>'
            for title, note, parts in cards
        )
        self._parts.append(f'<div class="cards">{"".join(made)}</div>')

    def save(self, path: Path) -> Path:
        """Write the page atomically."""
        title = html.escape(self._title)
        write_text(
            path,
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
            f"<body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n",
        )
        return path
