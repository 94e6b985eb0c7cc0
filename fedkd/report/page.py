"""What a page is made of: panels, tables of data, and :func:`page`, which sets them into a template.

Whatever is drawn is thinned to what a reader can use, and says so. Looks are in :mod:`fedkd.report.template`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import jinja2
from markupsafe import Markup

from fedkd.report import charts
from fedkd.report.axes import thin
from fedkd.report.charts import Line, swatch
from fedkd.report.template import CSS

POINTS = 200  # of a line; beyond that, evenly spread rounds are drawn
ROWS = 100  # of a data table
MARGIN = 10  # around a picture in a file of its own
UNKNOWN = "Not known in this run."
WORDS = {"architecture", "last error", "answer"}  # heads of columns that hold words, not numbers

T = TypeVar("T")


@dataclass(frozen=True)
class DataTable:
    """The numbers behind a picture, for those who cannot see it or want to count."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text: frozenset[int] = frozenset()  # columns of words; all others hold numbers, but the first, which names the row
    best: int = -1


@dataclass(frozen=True)
class Panel:
    """One card of the page: a question, a picture or a table that answers it, and the numbers behind it."""

    id: str
    title: str
    caption: str
    svg: Markup = Markup()
    legend: Markup = Markup()
    shown: DataTable | None = None
    tables: Sequence[DataTable] = ()
    unknown: str = UNKNOWN


def page(template: str, **values: object) -> str:
    """Fill a template with autoescape on; a name that is missing is an error."""
    looks = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return looks.from_string(template).render(css=Markup(CSS), **values)


def picture(svg: str) -> str:
    """Return a chart as a file of its own: with its colors, letters that need no page, and a margin."""
    letters = "svg { background: var(--panel); font-family: system-ui, sans-serif; }"
    tag, rest = str(svg).split(">", 1)
    wide, tall = (float(side) for side in tag.split('viewBox="0 0 ')[1].split('"')[0].split())
    frame = f'viewBox="{-MARGIN} {-MARGIN} {wide + 2 * MARGIN:g} {tall + 2 * MARGIN:g}"'
    tag = re.sub('viewBox="[^"]*"', f'xmlns="http://www.w3.org/2000/svg" {frame}', tag)
    return f"{tag}><style>{CSS}{letters}</style>{rest}"


def panel(id: str, title: str, caption: str, svg: str, items: Sequence[tuple[str, str]], *tables: DataTable) -> Panel:
    """Return the card of a picture by :mod:`fedkd.report.charts`; ``items`` of its legend are ``(swatch, text)``."""
    caption = caption if svg else caption.replace(UNKNOWN, "").strip()  # the body of the card says it
    legend = charts.legend(items) if items else ""
    return Panel(id, title, caption, Markup(svg), Markup(legend), tables=tables)  # charts escape for themselves


def data_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "Data table", what: str = "rows"
) -> DataTable:
    """Return a table of at most ``ROWS`` rows, evenly spread."""
    kept = [rows[i] for i in thin(len(rows), ROWS)]
    note = f"Shown: {len(kept)} of {len(rows)} {what}, evenly spread." if len(kept) < len(rows) else ""
    return DataTable(title, head, kept, note, frozenset(i for i, name in enumerate(head) if i and name in WORDS))


def thinned(line: Sequence[T]) -> list[T]:
    """Return at most ``POINTS`` points of a line, evenly spread."""
    return [line[i] for i in thin(len(line), POINTS)]


def line_legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return the items of a legend that names each line."""
    kind = "line" if any(len(line.points) > 1 for line in lines) else "dot"  # a single point is drawn as a dot
    return [(swatch(kind, line.color, line.dash), line.name) for line in lines]
