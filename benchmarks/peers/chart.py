"""The side by side as a picture: a bar for each row, ours in a colour of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

PANELS = (
    ("texts/s", "texts/s with 32 in flight: more is better"),
    ("p50 ms", "p50 in ms with one in flight: less is better"),
)
WIDTH, NAMES, BAR, ROW, TITLE = 860, 330, 400, 22, 40
STYLE = """
text { fill: #1f2328; font: 13px sans-serif }
.title { font-weight: bold }
.bar { fill: #afb8c1 }
.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .bar { fill: #59636e }
  .ours { fill: #4493f8 }
}
"""


def svg(records: Sequence[dict[str, Any]]) -> str:
    """One panel for each unit, best first; records without figures are left out."""
    rows = [record for record in records if record["texts/s"] != ""]
    height = TITLE + ROW * len(rows)
    whole = height * len(PANELS) + ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" role="img">',
        f"<title>{' and '.join(title for _, title in PANELS)}</title><style>{STYLE}</style>",
    ]
    for n, (unit, title) in enumerate(PANELS):
        lines += _panel(rows, unit, title, n * height)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(rows: list[dict[str, Any]], unit: str, title: str, top: int) -> Iterator[str]:
    yield f'<text class="title" x="10" y="{top + TITLE - 14}">{escape(title)}</text>'
    most = max(row[unit] for row in rows)
    ordered = sorted(rows, key=lambda row: row[unit], reverse=unit == "texts/s")
    for n, row in enumerate(ordered):
        y = top + TITLE + n * ROW
        kind = "ours" if row["peer"] == "ours" else "bar"
        label = f"{row['peer']} ({row['engine']}, {row['over']})"
        wide = BAR * row[unit] / most
        yield f'<text x="10" y="{y + 13}">{escape(label)}</text>'
        yield f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{wide:.1f}" height="{ROW - 5}"/>'
        yield f'<text x="{NAMES + wide + 6:.1f}" y="{y + 13}">{_figure(row[unit])}</text>'


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
