"""Charts as pure functions: data in, inline SVG out. No library, no script, no colors of their own.

Every chart scales by its ``viewBox`` and takes its colors from the style sheet of the page (``fedkd.report.template``):
classes ``s1`` to ``s8`` are a color-blind-safe palette, ``d1`` to ``d3`` dashes, so light, dark and print need no other
picture. A value that is not known is ``None``: it leaves a gap. A chart of which nothing is known is the empty string.
Text from a run is escaped here; callers may mark the result as safe.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedkd.report import svg
from fedkd.report.axes import log_ticks, nice_ticks
from fedkd.report.svg import WIDTH, num
from fedkd.units import number, percent, points, seconds, short

GLYPH_WIDTH = 6.8  # units per letter at the largest font size the style sheet uses (12 units, on phones)
COLORS = 8
STATUSES = ("answered", "late", "away", "silent", "failed")  # from best to worst
LEVELS = 5  # steps of a sequential color scale

Format = Callable[[float], str]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One line of a chart: points (x, y) from the left, ``y = None`` where not known; color 1 to 8, dash 0 to 3."""

    name: str
    points: Sequence[tuple[float, float | None]]
    color: int = 1
    dash: int = 0


@dataclass(frozen=True)
class Band:
    """A shaded range: points (x, low, high); either end may be None."""

    points: Sequence[tuple[float, float | None, float | None]]
    color: int = 1


@dataclass(frozen=True)
class Pair:
    """One row of a dumbbell: a value before and after."""

    name: str
    before: float | None
    after: float | None


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Return an HTML legend of ``(swatch, text)``; a swatch comes from :func:`swatch` and is not escaped."""
    entries = "".join(f"<li>{mark}{html.escape(text)}</li>" for mark, text in items)
    return f'<ul class="legend">{entries}</ul>'


def swatch(kind: str, color: int | str = 1, dash: int = 0) -> str:
    """Return the small picture of a legend entry: line, band, box, dot, ring, reference, level or status."""
    inner = {
        "line": f'<path class="line s{color} d{dash}" d="M0 6H22"/>',
        "reference": '<path class="reference" d="M0 6H22"/>',
        "band": f'<rect class="band s{color}" y="1" width="22" height="10"/>',
        "box": f'<rect class="fill s{color}" x="5" y="1" width="11" height="11" rx="2"/>',
        "dot": f'<circle class="fill s{color}" cx="11" cy="6" r="4.5"/>',
        "ring": f'<circle class="ring s{color}" cx="11" cy="6" r="4"/>',
        "level": f'<rect class="{color}" x="5" y="0" width="12" height="12" rx="2"/>',
    }
    if kind == "status":
        box = f'<rect class="st-{color}" x="5" y="0" width="12" height="12" rx="2"/>'
        picture = f'{box}<path class="glyph g-{color}" d="{svg.glyph(str(color), 11, 6, 3)}"/>'
    else:
        picture = inner[kind]
    return f'<svg class="swatch" viewBox="0 0 22 12" aria-hidden="true">{picture}</svg>'


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_format: Format = number,
    y_format: Format = percent,
    y_limits: tuple[float, float] = (-math.inf, math.inf),
    y_span: float = 0.1,
    log_x: bool = False,
    whole_x: bool = False,
    band: Band | None = None,
    mark: tuple[float, str] | None = None,
    keyed: bool = False,
) -> str:
    """Draw lines over a linear or logarithmic axis; ``mark`` is a vertical line with its label.

    The y axis spans what is there, at least ``y_span`` so that noise looks like noise, within ``y_limits``. It need not
    start at zero: position is read, not area. ``keyed``: names are written below, for a picture that stands alone.
    """
    lines = [Line(a.name, [p for p in a.points if p[0] > 0 or not log_x], a.color, a.dash) for a in lines]
    spread = [] if band is None else [p for p in band.points if p[0] > 0 or not log_x]
    known = [(x, y) for line in lines for x, y in line.points if y is not None]
    if not known:
        return ""
    ys = [y for _, y in known] + [v for _, low, high in spread for v in (low, high) if v is not None]
    xs = [x for x, _ in known] + ([mark[0]] if mark else [])
    y_low, y_high = _padded(min(ys), max(ys), y_limits, y_span)
    x_low, x_high = min(xs), max(xs)
    if log_x:
        margin = 3.0 if x_high == x_low else (x_high / x_low) ** 0.04
        x_low, x_high = x_low / margin, x_high * margin
        ticks = log_ticks(x_low, x_high, first=min(xs))  # a reader needs a number at or before the first point
        x_low = min(x_low, *ticks)
    else:
        x_low, x_high = (x_low - 0.6, x_high + 0.6) if x_high == x_low else (x_low, x_high)
        ticks = nice_ticks(x_low, x_high, most=7, whole=whole_x)

    top, bottom, height = 26.0, 42.0, 244.0
    y_ticks = nice_ticks(y_low, y_high, most=6)
    left = 10 + GLYPH_WIDTH * max(len(y_format(t)) for t in y_ticks)
    labeled = len(lines) <= 6
    right = 8 + (GLYPH_WIDTH * max(len(y_format(y)) for _, y in known) if labeled else 4)

    def at_x(x: float) -> float:
        share = math.log(x / x_low) / math.log(x_high / x_low) if log_x else (x - x_low) / (x_high - x_low)
        return left + share * (WIDTH - left - right)

    def at_y(y: float) -> float:
        return top + (y_high - y) / (y_high - y_low) * (height - top - bottom)

    out = [svg.text(0, 11, y_label, "axis")]
    for tick in y_ticks:
        out.append(svg.path("rule", f"M{num(left)} {num(at_y(tick))}H{num(WIDTH - right)}"))
        out.append(svg.text(left - 6, at_y(tick) + 4, svg.bare(y_format(tick)), "tick end"))
    floor = height - bottom
    out.append(svg.path("axis-line", f"M{num(left)} {num(floor)}H{num(WIDTH - right)}"))
    for tick, anchor in _fitting([(at_x(t), x_format(t)) for t in ticks]):
        out.append(svg.path("axis-line", f"M{num(tick)} {num(floor)}v4"))
        out.append(svg.text(tick, floor + 16, anchor, "tick mid"))
    out.append(svg.text((left + WIDTH - right) / 2, height - 6, x_label, "axis mid"))

    if band is not None:
        out += _band(spread, band.color, at_x, at_y)
    if mark is not None:
        x, middle = at_x(mark[0]), (left + WIDTH - right) / 2
        side, shift = ("end", -5) if x > middle else ("", 5)
        out.append(svg.path("mark", f"M{num(x)} {num(top)}V{num(floor)}"))
        out.append(svg.text(x + shift, floor - 7, mark[1], f"halo {side}"))
    dots = max(len(line.points) for line in lines) <= 30
    for line in reversed(lines):  # the first line is the one that matters: it is drawn last, on top
        out += _line(line, at_x, at_y, dots, lambda x, y: f"{x_format(x)}: {y_format(y)}")
    if labeled:
        ends = [(at_y(y), y_format(y), a.color) for a in lines for y in [_last(a.points)] if y is not None]
        for y, text, color in _apart(ends, 12, top, floor):
            out.append(svg.text(WIDTH - right + 6, y + 4, text, f"value s{color}"))
    if keyed:
        for i, line in enumerate(lines):
            y = height + 16 * i + 4
            out.append(svg.path(f"line s{line.color} d{line.dash}", f"M2 {num(y)}H24"))
            out.append(svg.text(30, y + 4, line.name, "tick"))
        height += 16 * len(lines)
    return svg.drawing(height, title, out)


def dumbbell_chart(
    rows: Sequence[Pair], *, title: str, x_label: str, reference: tuple[float, str] | None = None
) -> str:
    """Draw a ring (before) and a dot (after) in each row, joined; ``reference`` is a vertical line, as the student."""
    rows = [row for row in rows if row.before is not None or row.after is not None]
    if not rows:
        return ""
    values = [v for row in rows for v in (row.before, row.after) if v is not None]
    values += [reference[0]] if reference else []
    low, high = _padded(min(values), max(values), (0.0, 1.0), 0.1)
    left = 12 + GLYPH_WIDTH * max(len(short(row.name, 16)) for row in rows)
    right, top, pitch = 44.0, 24.0, 19.0
    floor = top + pitch * len(rows)
    height = floor + 42

    def at(x: float) -> float:
        return left + (x - low) / (high - low) * (WIDTH - left - right)

    changed = any(row.before is not None and row.after is not None for row in rows)
    out = [svg.text(WIDTH, 11, "points", "axis end")] if changed else []
    for x, text in _fitting([(at(t), percent(t)) for t in nice_ticks(low, high, most=6)]):
        out.append(svg.path("rule", f"M{num(x)} {num(top)}V{num(floor)}"))
        out.append(svg.text(x, floor + 16, svg.bare(text), "tick mid"))
    out.append(svg.text((left + WIDTH - right) / 2, height - 6, x_label, "axis mid"))
    if reference is not None:
        x = at(reference[0])
        side = "end" if x > (left + WIDTH - right) / 2 else ""
        out.append(svg.path("mark", f"M{num(x)} {num(top - 8)}V{num(floor)}"))
        out.append(svg.text(x + (-5 if side else 5), 14, reference[1], f"halo {side}"))
    for i, row in enumerate(rows):
        y = top + pitch * (i + 0.5)
        out.append(svg.text(left - 10, y + 4, short(row.name, 16), "tick end"))
        tip = f"{row.name}: {' to '.join(percent(v) for v in (row.before, row.after) if v is not None)}"
        if row.before is not None and row.after is not None:
            gain = points(row.after - row.before)
            way = "up" if gain[0] == "+" else "down" if gain[0] == "−" else "level"
            out.append(svg.path(f"joint {way}", f"M{num(at(row.before))} {num(y)}H{num(at(row.after))}"))
            out.append(svg.text(WIDTH, y + 4, gain, f"value end {way}"))
        if row.before is not None:
            out.append(svg.circle("ring s3", at(row.before), y, 4, tip))
        if row.after is not None:
            out.append(svg.circle("fill s1", at(row.after), y, 4.5, tip))
    return svg.drawing(height, title, out)


def grid_chart(
    cells: Sequence[Sequence[str | None]],
    *,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    y_label: str,
    glyphs: bool = False,
) -> str:
    """Draw a grid (rows, columns) of classes, each in its color; with ``glyphs``, ``st-STATUS`` carry a sign too.

    All cells of a class are one path, so a full grid costs some 15 bytes a cell.
    """
    if not any(cell for row in cells for cell in row):
        return ""
    left = 12 + GLYPH_WIDTH * max(len(short(name, 12)) for name in rows)
    top, wide = 24.0, min(30.0, (WIDTH - left - 4) / len(columns))
    tall = max(11.0, min(18.0, wide))
    floor = top + tall * len(rows)
    paths: dict[str, list[str]] = {}
    signs: dict[str, list[str]] = {}
    for r, row in enumerate(cells):
        for c, kind in enumerate(row):
            if kind is None:
                continue
            x, y = left + c * wide, top + r * tall
            paths.setdefault(kind, []).append(svg.box(x, y, wide, tall))
            if glyphs and kind.removeprefix("st-") in STATUSES:
                status = kind.removeprefix("st-")
                radius = 0.27 * min(wide, tall)
                signs.setdefault(status, []).append(svg.glyph(status, x + wide / 2, y + tall / 2, radius))
    out = [svg.text(0, 11, y_label, "axis")]
    out += [svg.path(kind, "".join(paths[kind])) for kind in sorted(paths)]
    out += [svg.path(f"glyph g-{status}", "".join(signs[status])) for status in sorted(signs)]
    for r, name in enumerate(rows):
        out.append(svg.text(left - 6, top + (r + 0.5) * tall + 4, short(name, 12), "tick end"))
    for x, name in _fitting([(left + (c + 0.5) * wide, name) for c, name in enumerate(columns)]):
        out.append(svg.text(x, floor + 14, name, "tick mid"))
    middle = left + wide * len(columns) / 2
    out.append(svg.text(max(middle, 3.4 * len(x_label)), floor + 32, x_label, "axis mid"))
    return svg.drawing(floor + 38, title, out)


def reliability_chart(curves: Sequence[tuple[str, Sequence[tuple[float, float, float]], int]], *, title: str) -> str:
    """Draw accuracy over confidence of each ``(name, [(confidence, accuracy, count)], color)``; dot size: count."""
    drawn = [(n, sorted(bins), color) for n, bins, color in curves if bins]
    most = max((count for _, bins, _ in drawn for _, _, count in bins), default=0.0)
    if not drawn or most <= 0:
        return ""
    left, top, side = 50.0, 26.0, 270.0
    floor, height = top + side, top + side + 42

    def at_x(x: float) -> float:
        return left + x * (WIDTH - left - 14)

    def at_y(y: float) -> float:
        return floor - y * side

    out = [svg.text(0, 11, "accuracy", "axis")]
    for i in range(6):
        tick = i / 5
        out.append(svg.path("rule", f"M{num(left)} {num(at_y(tick))}H{num(WIDTH - 14)}"))
        out.append(svg.text(left - 6, at_y(tick) + 4, f"{100 * tick:.0f}%", "tick end"))
        out.append(svg.text(at_x(tick), floor + 16, f"{100 * tick:.0f}%", "tick mid"))
    out.append(svg.text((left + WIDTH - 14) / 2, height - 6, "confidence", "axis mid"))
    out.append(svg.path("reference", f"M{num(left)} {num(floor)}L{num(at_x(1))} {num(top)}"))
    out.append(svg.text(at_x(0.04), at_y(0.93), "too modest", "hint"))
    out.append(svg.text(at_x(0.96), at_y(0.05), "too confident", "hint end"))
    for name, bins, color in reversed(drawn):
        d = "L".join(f"{num(at_x(c))} {num(at_y(a))}" for c, a, _ in bins)
        out.append(svg.path(f"line thin s{color} d{0 if color == 1 else 1}", "M" + d))
        for c, a, count in bins:
            tip = f"{name}: confidence {percent(c)}, accuracy {percent(a)}, {count:.0f} samples"
            out.append(svg.circle(f"dot s{color}", at_x(c), at_y(a), 2.2 + 5.5 * math.sqrt(count / most), tip))
    return svg.drawing(height, title, out)


def roc_chart(curves: Sequence[Line], *, low: float, title: str, bound: Line | None = None) -> str:
    """Draw hits over false alarms, both logarithmic from ``low`` to 1: what matters of an attack is its left end.

    The diagonal is guessing; ``bound`` is the most that is promised to be possible. Points with y = None are below.
    """
    lines = [*curves, *([bound] if bound else [])]
    if not any(y is not None for line in curves for _, y in line.points):
        return ""
    left, top, side = 50.0, 26.0, 270.0
    floor, height = top + side, top + side + 42

    def share(value: float) -> float:
        return 1 - math.log(max(value, low)) / math.log(low)

    def at_x(x: float) -> float:
        return left + share(x) * (WIDTH - left - 20)

    def at_y(y: float) -> float:
        return floor - share(y) * side

    out = [svg.text(0, 11, "members found", "axis")]
    for place in range(round(-math.log10(low)) + 1):
        tick = 10.0**-place
        out.append(svg.path("rule", f"M{num(left)} {num(at_y(tick))}H{num(WIDTH - 20)}"))
        out.append(svg.path("rule", f"M{num(at_x(tick))} {num(top)}V{num(floor)}"))
        out.append(svg.text(left - 6, at_y(tick) + 4, f"{100 * tick:g}%", "tick end"))
        out.append(svg.text(at_x(tick), floor + 16, f"{100 * tick:g}%", "tick mid"))
    out.append(svg.text((left + WIDTH - 20) / 2, height - 6, "others wrongly named", "axis mid"))
    out.append(svg.path("reference", f"M{num(left)} {num(floor)}L{num(at_x(1))} {num(top)}"))
    for line in reversed(lines):
        known = [(x, y) for x, y in line.points if y is not None and x >= low * (1 - 1e-9)]
        if known:
            d = "L".join(f"{num(at_x(x))} {num(at_y(y))}" for x, y in known)
            out.append(svg.path(f"line s{line.color} d{line.dash}", "M" + d))
    for i, line in enumerate(lines):  # below the diagonal there is nothing else
        y = floor - 12 - 15 * (len(lines) - 1 - i)
        name = short(line.name, 24)
        x = WIDTH - 28 - GLYPH_WIDTH * max(len(short(each.name, 24)) for each in lines)
        out.append(svg.path(f"line s{line.color} d{line.dash}", f"M{num(x - 28)} {num(y - 4)}H{num(x - 6)}"))
        out.append(svg.text(x, y, name, "halo"))
    return svg.drawing(height, title, out)


def confusion_chart(counts: Sequence[Sequence[float]], names: Sequence[str], *, title: str) -> str:
    """Draw rows (truth) by columns (answer); the color is the share of the row, mistakes in another color than hits."""
    classes = len(counts)
    if not classes or not any(value for row in counts for value in row):
        return ""
    labels = [short(name, 11) for name in names]
    longest = max(len(label) for label in labels)
    slanted = longest > 2
    left = 14 + GLYPH_WIDTH * longest
    top = (36 if slanted else 24) + (0.72 * GLYPH_WIDTH * longest + 6 if slanted else 14)
    right = 0.6 * GLYPH_WIDTH * longest if slanted else 4
    cell = min(32.0, (WIDTH - left - right) / classes)
    paths: dict[str, list[str]] = {}  # all cells of one color are one path
    numbers = []
    for r, row in enumerate(counts):
        total = sum(row)
        for c, value in enumerate(row):
            x, y = left + c * cell, top + r * cell
            share = value / total if total else 0.0
            step = math.ceil(10 * (share if r == c else share**0.7) - 1e-9)
            kind = ("hit" if r == c else "miss") + f" o{step}" if value else "empty"
            paths.setdefault(kind, []).append(svg.box(x, y, cell, cell))
            if value and cell >= 20:
                numbers.append(
                    svg.text(x + cell / 2, y + cell / 2 + 4, f"{value:g}", "cell on" if step > 5 else "cell")
                )
    out = [svg.text(0, 11, "rows: truth, columns: answer of the student", "axis")]
    out += [svg.path(kind, "".join(paths[kind])) for kind in sorted(paths)] + numbers
    out += [svg.text(left - 6, top + (r + 0.5) * cell + 4, label, "tick end") for r, label in enumerate(labels)]
    for c, label in enumerate(labels):
        x, y = left + (c + 0.5) * cell, top - 6
        if slanted:
            out.append(f'<g transform="translate({num(x)} {num(y)}) rotate(-45)">{svg.text(0, 0, label, "tick")}</g>')
        else:
            out.append(svg.text(x, y, label, "tick mid"))
    return svg.drawing(top + cell * classes + 6, title, out)


def stacked_chart(
    columns: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], *, title: str, x_label: str, y_label: str
) -> str:
    """Draw a bar for each ``(name, seconds by part)``, stacked from the bottom in the order of ``parts``."""
    tallest = max((sum(values) for _, values in columns), default=0.0)
    if tallest <= 0:
        return ""
    top, bottom, height = 26.0, 42.0, 244.0
    ticks = nice_ticks(0.0, 1.04 * tallest, most=6)
    left = 10 + GLYPH_WIDTH * max(len(seconds(t)) for t in ticks)
    floor = height - bottom
    pitch = (WIDTH - left - 6) / len(columns)
    wide = min(44.0, 0.72 * pitch)

    def at_y(y: float) -> float:
        return floor - y / (1.04 * tallest) * (floor - top)

    out = [svg.text(0, 11, y_label, "axis")]
    for tick in ticks:
        out.append(svg.path("rule", f"M{num(left)} {num(at_y(tick))}H{num(WIDTH - 6)}"))
        out.append(svg.text(left - 6, at_y(tick) + 4, seconds(tick) if tick else "0", "tick end"))
    for i, (name, values) in enumerate(columns):
        x, base = left + (i + 0.5) * pitch - wide / 2, 0.0
        for k, value in enumerate(values):
            if value <= 0:
                continue
            tall = at_y(base) - at_y(base + value)
            tip = html.escape(f"{x_label} {name}, {parts[k]}: {seconds(value)}")
            box = f'x="{num(x)}" y="{num(at_y(base + value))}" width="{num(wide)}" height="{num(max(tall, 0.3))}"'
            out.append(f'<rect class="fill s{k % COLORS + 1}" {box}><title>{tip}</title></rect>')
            base += value
    out.append(svg.path("axis-line", f"M{num(left)} {num(floor)}H{num(WIDTH - 6)}"))
    for x, name in _fitting([(left + (i + 0.5) * pitch, name) for i, (name, _) in enumerate(columns)]):
        out.append(svg.text(x, floor + 16, name, "tick mid"))
    out.append(svg.text((left + WIDTH - 6) / 2, height - 6, x_label, "axis mid"))
    return svg.drawing(height, title, out)


def _padded(low: float, high: float, limits: tuple[float, float], span: float) -> tuple[float, float]:
    """Widen [low, high] by 7% on both sides and to at least ``span``, within ``limits``."""
    pad = max(0.07 * (high - low), (span - (high - low)) / 2)
    low, high = max(low - pad, limits[0]), min(high + pad, limits[1])
    return (low, high) if high - low > span / 2 else (high - span, high)


def _fitting(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Every n-th of the labels (x, text), with the least n that lets none touch its neighbor."""
    widest = max((len(text) for _, text in labels), default=0) * GLYPH_WIDTH + 6
    gaps = [b[0] - a[0] for a, b in zip(labels, labels[1:], strict=False)]
    every = max(1, math.ceil(widest / min(gaps))) if gaps else 1
    return list(labels)[::every]


def _apart(
    ends: Sequence[tuple[float, str, int]], gap: float, top: float, floor: float
) -> list[tuple[float, str, int]]:
    """Push labels (y, text, color) apart until ``gap`` lies between any two, staying within [top, floor]."""
    placed: list[tuple[float, str, int]] = []
    for y, text, color in sorted(ends):
        lowest = placed[-1][0] + gap if placed else top
        placed.append((max(y, lowest), text, color))
    limit = floor
    for i in range(len(placed) - 1, -1, -1):
        y, text, color = placed[i]
        placed[i] = (min(y, limit), text, color)
        limit = placed[i][0] - gap
    return placed


def _last(line: Sequence[tuple[float, float | None]]) -> float | None:
    return next((y for _, y in reversed(line) if y is not None), None)


def _line(line: Line, at_x: Scale, at_y: Scale, dots: bool, tip: Callable[[float, float], str]) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    kind = f"s{line.color} d{line.dash}"
    out = []
    for run in runs:
        if len(run) > 1:
            d = "L".join(f"{num(at_x(x))} {num(at_y(y))}" for x, y in run)
            out.append(svg.path(f"line {kind}", f"M{d}"))
        if dots or len(run) == 1:
            out += [
                svg.circle(f"dot s{line.color}", at_x(x), at_y(y), 3.8, f"{line.name}, {tip(x, y)}") for x, y in run
            ]
        elif run:  # the end of a long line, so that one sees where it stops
            out.append(svg.circle(f"dot s{line.color}", at_x(run[-1][0]), at_y(run[-1][1]), 3.8))
    return out


def _band(
    spread: Sequence[tuple[float, float | None, float | None]], color: int, at_x: Scale, at_y: Scale
) -> list[str]:
    runs: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in spread:
        if low is None or high is None:
            runs.append([])
        else:
            runs[-1].append((x, low, high))
    out = []
    for run in runs:
        if len(run) == 1:  # one round has no area: a bar stands for it
            x, low, high = run[0]
            box = f'x="{num(at_x(x) - 7)}" y="{num(at_y(high))}" width="14" height="{num(at_y(low) - at_y(high))}"'
            out.append(f'<rect class="band s{color}" {box}/>')
        elif run:
            there = [f"{num(at_x(x))} {num(at_y(high))}" for x, _, high in run]
            back = [f"{num(at_x(x))} {num(at_y(low))}" for x, low, _ in reversed(run)]
            out.append(svg.path(f"band s{color}", f"M{'L'.join(there + back)}z"))
    return out
