"""Throughput against p99 as an SVG, the Pareto front a line; tooltips have the candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from build_scripts.plan.candidates import Choice
from build_scripts.plan.pareto import Row, front, measured, place

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 70, 24, 44, 52
TICKS = 5
Point = tuple[float, float]


def svg(rows: Sequence[Row], notes: Mapping[Choice, str], title: str) -> str:
    """
    Args:
        notes: a word beside the points of some candidates.
    """
    places = [place(row) for row in measured(rows)]
    most = [1.05 * max((abs(each[axis]) for each in places), default=1.0) for axis in (1, 0)]

    def at(rate: float, minus_p99: float) -> Point:
        across, up, p99 = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, -minus_p99
        return LEFT + across * p99 / most[0], HEIGHT - BOTTOM - up * rate / most[1]

    line = " ".join("{:.1f},{:.1f}".format(*at(*place(row))) for row in front(rows))
    body = [
        _text((WIDTH / 2, TOP / 2), title, "middle"),
        _text((WIDTH / 2, HEIGHT - 10), "p99, ms", "middle"),
        _text((8, TOP - 12), "requests/s", "start"),
        *_ticks(at, most),
        f'<polyline points="{line}" fill="none" stroke="#76b900" stroke-width="2"/>',
    ]
    for row, spot in zip(measured(rows), places, strict=True):
        body += _mark(row, at(*spot), notes.get(row.choice, ""))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    sheet = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f"{head} {style}>", sheet, *body, "</svg>\n"])


def _ticks(at: Callable[[float, float], Point], most: Sequence[float]) -> Iterator[str]:
    for n in range(TICKS + 1):
        p99, rate = (n * each / TICKS for each in most)
        x, y = at(rate, -p99)
        across, up = f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"
        yield f'<path d="{across}{up}" stroke="#ddd"/>'
        yield _text((x, HEIGHT - BOTTOM + 18), f"{p99:.3g}", "middle")
        yield _text((LEFT - 8, y + 4), f"{rate:.3g}", "end")


def _mark(row: Row, at: Point, note: str) -> Iterator[str]:
    assert row.load is not None
    said = f"{row.choice}: {row.load.requests_per_second:.1f}/s, p99 {row.load.p99_ms:.1f} ms"
    colour = "#d33" if note else "#36c"
    circle = f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" fill="{colour}">'
    yield f"{circle}<title>{escape(said)}</title></circle>"
    if note:
        yield _text((at[0] + 8, at[1] + 4), note, "start")


def _text(at: Point, text: str, anchor: str) -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
