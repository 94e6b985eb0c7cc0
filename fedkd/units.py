"""Numbers and words as people read them: shares, bytes, durations. A number that is not known (None) is a dash."""

from __future__ import annotations

import json
import math
import re


def percent(value: float | None) -> str:
    """Return ``0.879`` as ``"87.9%"``, None as a dash."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """Return a difference of two shares in percentage points with its sign: ``0.333`` as ``"+33.3"``."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def three(value: float | None) -> str:
    """Return a number with three decimals, None as a dash."""
    return "–" if value is None else f"{value:.3f}"


def ceiling(value: float) -> str:
    """Return three digits of what was spent, never less than it is: ``2.9999`` as ``"3"``, ``3.001`` as ``"3.01"``."""
    if not 0 < value < math.inf:
        return f"{value:g}"
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale * (1 - 1e-9)) / scale:g}"


def gap(difference: float) -> str:
    """Return ``0.333`` as ``"33.3 points above"``; a difference that rounds to nothing is ``"level with"``."""
    text = f"{abs(100 * difference):.1f}"
    return "level with" if text == "0.0" else f"{text} points {'above' if difference > 0 else 'below'}"


def size(value: float | None) -> str:
    """Return bytes in decimal units with three digits: ``8123`` as ``"8.12 kB"``; None as a dash."""
    if value is None:
        return "–"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """Return a duration: ``0.0123`` as ``"12 ms"``, ``75`` as ``"1 min 15 s"``; None as a dash."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{1e3 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(value: float | None) -> str:
    """Return a plain number with three digits, None as a dash."""
    return "–" if value is None else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """Return how many there are of something: ``"1 node"``, ``"2 nodes"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def whole(value: float) -> str:
    """Return a number without decimals, such as that of a round."""
    return f"{value:.0f}"


def plain(value: object) -> str:
    """Return a JSON value: a text as it is, None as ``"not known"``, all else as JSON."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def pieces(text: str, width: int) -> list[str]:
    """Return the lines of ``text``: at most ``width`` letters where breaks after a space or any of ``,(|`` allow it.

    What is longer still is broken after ``=``, never inside a value.

    >>> pieces("distill=kl(temperature=1.0)", 16)
    ['distill=kl(', 'temperature=1.0)']
    """
    lines = [""]
    for one in re.findall(r"[^\s,(|]*[\s,(|]+|[^\s,(|]+", text):
        for piece in re.findall(r"[^=]*=?", one)[:-1] if len(one.rstrip()) > width else [one]:
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def short(text: str, most: int) -> str:
    """Cut ``text`` to ``most`` letters; long keys of clients differ at their end, so the middle goes."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
