"""Curves as SVG, both axes logarithmic; nothing but text is needed to draw them."""

from __future__ import annotations

import math
from html import escape

Curves = dict[str, list[tuple[float, float]]]

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: for every eye


def line_plot(curves: Curves, *, title: str, x: str, y: str) -> str:
    """Return an SVG document with one line per curve."""
    points = [point for curve in curves.values() for point in curve]
    x_axis = _Axis([at for at, _ in points], base=2, low=LEFT, high=WIDTH - RIGHT)
    y_axis = _Axis([at for _, at in points], base=10, low=HEIGHT - BOTTOM, high=TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x),
        f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, y)}</g>',
    ]
    for tick in x_axis.ticks():
        at = x_axis.at(tick)
        parts += [_line(at, TOP, at, HEIGHT - BOTTOM), _text(at, HEIGHT - BOTTOM + 18, f"{tick:g}")]
    for tick in y_axis.ticks():
        at = y_axis.at(tick)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 6, at + 4, f"{tick:g}", anchor="end")]
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x_axis.at(a):.1f},{y_axis.at(b):.1f}" for a, b in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_axis.at(a):.1f}" cy="{y_axis.at(b):.1f}" r="3" fill="{colour}"/>' for a, b in curve]
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{y_axis.at(curve[-1][1]) + 4:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """A logarithmic axis from pixel ``low`` to pixel ``high``."""

    def __init__(self, values: list[float], *, base: int, low: float, high: float) -> None:
        self._base = base
        self._first = math.floor(math.log(min(values), base) + 1e-9)
        self._last = max(math.ceil(math.log(max(values), base) - 1e-9), self._first + 1)
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        share = (math.log(value, self._base) - self._first) / (self._last - self._first)
        return self._low + share * (self._high - self._low)

    def ticks(self) -> list[float]:
        return [float(self._base**power) for power in range(self._first, self._last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
