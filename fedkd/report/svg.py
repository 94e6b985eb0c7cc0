"""What charts are drawn with: SVG elements as text, coordinates in units of the viewBox."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 400.0  # units of the viewBox: 330 px on a phone, about 500 on a desktop


def bare(tick: str) -> str:
    """A tick of a whole percentage needs no decimal."""
    return tick.replace(".0%", "%")


def num(value: float) -> str:
    """A coordinate in as few letters as a tenth of a unit needs."""
    digits = f"{value:.1f}".removesuffix(".0")
    return "0" if digits == "-0" else digits


def drawing(height: float, title: str, parts: Sequence[str]) -> str:
    """A whole chart of its parts, with a title for those who do not see it."""
    label = html.escape(title)
    return f'<svg viewBox="0 0 {num(WIDTH)} {num(height)}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, kind: str) -> str:
    """Words at (x, y), of the style sheet's class ``kind``."""
    return f'<text class="{kind.strip()}" x="{num(x)}" y="{num(y)}">{html.escape(words)}</text>'


def path(kind: str, d: str) -> str:
    """A line or an area."""
    return f'<path class="{kind}" d="{d}"/>'


def box(x: float, y: float, wide: float, tall: float) -> str:
    """The path of a cell, with a gap of one unit to its neighbors."""
    return f"M{num(x + 0.5)} {num(y + 0.5)}h{num(wide - 1)}v{num(tall - 1)}h-{num(wide - 1)}z"


def circle(kind: str, x: float, y: float, r: float, tip: str = "") -> str:
    """A dot, with a tip for the mouse."""
    hint = f"<title>{html.escape(tip)}</title>" if tip else ""
    return f'<circle class="{kind}" cx="{num(x)}" cy="{num(y)}" r="{num(r)}">{hint}</circle>'


def glyph(status: str, x: float, y: float, r: float) -> str:
    """The sign of a status around (x, y): a tick, a slash, a stroke, a bar or a cross."""
    a, b = num(x - r), num(y - r)
    span = num(2 * r)
    return {
        "answered": f"M{a} {num(y)}l{num(0.7 * r)} {num(0.8 * r)} {num(1.3 * r)}-{num(1.6 * r)}",
        "late": f"M{a} {num(y + r)}l{span}-{span}",
        "away": f"M{num(x)} {b}v{span}",
        "silent": f"M{a} {num(y)}h{span}",
        "failed": f"M{a} {b}l{span} {span}M{a} {num(y + r)}l{span}-{span}",
    }[status]
