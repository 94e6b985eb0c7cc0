"""What a sweep found: mean and spread over seeds as a table for the terminal, CSV, JSON, LaTeX, and one page.

Reads runs as :mod:`fedkd.report.compare` does; nothing is trained or measured again.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedkd.journal import Run, real, total
from fedkd.report import charts
from fedkd.report.axes import thin
from fedkd.report.charts import COLORS, Line
from fedkd.report.page import DataTable, Panel, line_legend, page, panel, thinned
from fedkd.report.template import COMPARISON
from fedkd.units import percent, pieces, seconds, short, size, whole

SCORES = ("student", "ensemble", "local_mean", "local_best", "pooled")
COSTS = ("bytes_up_per_client", "bytes_down_per_client", "bytes_up", "bytes_down", "seconds")
DRAWN = 24  # lines that a chart can tell apart: eight colors times three dashes
LISTED = 200  # variants in the table of the page


class Cell:
    """Text in a terminal's table, which may break between settings and never inside a number."""

    def __init__(self, text: str) -> None:
        """Hold ``text``, which is printed as it is."""
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(pieces(self.text, options.max_width)), overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, len(self.text)).with_maximum(options.max_width)


@dataclass(frozen=True, eq=False)
class Finished:
    """A run of a sweep: its seed, where it lies, and what its directory says; None if there is no finished run."""

    seed: int
    path: str
    run: Run | None

    def value(self, key: str) -> float | None:
        """Return a score or a cost of the run, None where it is not known."""
        if self.run is None:
            return None
        if key == "seconds":
            return total(real(value) for r in self.run.rounds for value in r.seconds.values())
        if key in ("bytes_up", "bytes_down"):
            return self.run.moved(key.removeprefix("bytes_"))
        return real(self.run.scoreboard.get(key))


@dataclass(frozen=True, eq=False)
class Variant:
    """One combination of settings and its runs, one for each seed; ``settings`` has all keys that differ in a sweep."""

    name: str
    settings: Mapping[str, Any]
    runs: tuple[Finished, ...]

    def values(self, key: str) -> list[float]:
        """Return what is known of a score or a cost, in the order of the seeds."""
        return [value for run in self.runs if (value := run.value(key)) is not None]

    def mean(self, key: str) -> float | None:
        """Return the mean over seeds, None if nothing is known."""
        values = self.values(key)
        return statistics.mean(values) if values else None

    def curve(self) -> list[tuple[float, float, float | None]]:
        """Return (round, bytes moved so far, student) of each round, means over the runs that have come as far."""
        runs = [run.run for run in self.runs if run.run is not None]
        points = [list(zip(r.series("student"), r.traffic(), strict=True)) for r in runs]
        found = []
        for i in range(min((len(p) for p in points), default=0)):
            scores = [p[i][0][1] for p in points if p[i][0][1] is not None]
            student = statistics.mean(s for s in scores if s is not None) if scores else None
            found.append((points[0][i][0][0], statistics.mean(p[i][1] for p in points), student))
        return found


@dataclass(frozen=True, eq=False)
class Findings:
    """All variants of a sweep in the order of its file; ``keys`` are the settings that differ between them."""

    name: str
    keys: tuple[str, ...]
    variants: tuple[Variant, ...]

    @property
    def best(self) -> int:
        """The index of the variant with the highest mean of its students; -1 where none is known."""
        known = [(mean, -i) for i, v in enumerate(self.variants) if (mean := v.mean("student")) is not None]
        return -max(known)[1] if known else -1

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        missing = sum(run.run is None for v in self.variants for run in v.runs)
        seeds = max((len(v.runs) for v in self.variants), default=0)
        spread = f" Mean ± standard deviation over {seeds} seeds." if seeds > 1 else " One seed: no spread is known."
        notes = [f"Bold: the highest mean of the student.{spread}"]
        return notes + ([f"{missing} of the runs did not finish: they failed or were interrupted."] if missing else [])

    def table(self) -> Table:
        """Return the table for a terminal; the best variant is bold."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, caption_justify="left")
        table.caption = Text("\n".join(self.notes), style="dim")
        table.add_column("variant", min_width=12, max_width=40, overflow="fold")
        for head in HEADS:
            table.add_column(head, justify="right", no_wrap=True)
        for i, variant in enumerate(self.variants):
            cells: list[RenderableType] = [Cell(variant.name), *map(Text, _cells(variant))]
            table.add_row(*cells, style="bold" if i == self.best else "")
        return table

    def csv(self) -> str:
        """Return one line for each run, with a head; what is not known is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["variant", *self.keys, "seed", "finished", "rounds", *SCORES, *COSTS, "path"])
        for variant in self.variants:
            for run in variant.runs:
                told = [variant.settings.get(key, "") for key in self.keys]
                numbers = ["" if (value := run.value(key)) is None else value for key in (*SCORES, *COSTS)]
                rounds = len(run.run.rounds) if run.run is not None else ""
                finished = str(run.run is not None).lower()
                writer.writerow([variant.name, *told, run.seed, finished, rounds, *numbers, run.path])
        return stream.getvalue()

    def json(self) -> str:
        """Return mean, standard deviation, median and values of everything, by variant."""
        found = {
            variant.name: {
                "settings": dict(variant.settings),
                "seeds": [run.seed for run in variant.runs if run.run is not None],
                **{key: spread(values) for key in (*SCORES, *COSTS) if (values := variant.values(key))},
            }
            for variant in self.variants
        }
        return json.dumps({"sweep": self.name, "variants": found}, indent=1, allow_nan=False) + "\n"

    def latex(self) -> str:
        """Return a table in the style of booktabs; the best student is bold."""
        lines = [
            "% needs \\usepackage{booktabs}",
            f"% {' '.join(self.notes)}",
            "\\begin{tabular}{lrrrrr}",
            "\\toprule",
            "variant & student [\\%] & ensemble [\\%] & local [\\%] & up / client, round & moved in all \\\\",
            "\\midrule",
        ]
        for i, variant in enumerate(self.variants):
            cells = [_latex_share(variant.values(key)) for key in ("student", "ensemble", "local_mean")]
            cells[0] = f"\\textbf{{{cells[0]}}}" if i == self.best else cells[0]
            costs = [size(variant.mean("bytes_up_per_client")), size(_moved(variant))]
            lines.append(" & ".join([_latex_text(variant.name), *cells, *map(_latex_text, costs)]) + " \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"

    def html(self) -> str:
        """Return a self-contained page: the table, accuracy over bytes and over rounds, settings."""
        rows = [[short(v.name, 60), *_cells(v)] for v in self.variants[:LISTED]]
        more = f" {len(self.variants) - LISTED} more variants are not listed." if len(self.variants) > LISTED else ""
        board = DataTable("Scoreboard", ["variant", *HEADS], rows, self.notes[0] + more, best=self.best)
        told = [
            [short(v.name, 60), *(short(str(v.settings.get(k, "–")), 60) for k in self.keys)] for v in self.variants
        ]
        told = [[short(cell, 60) for cell in row] for row in told]
        words = frozenset(range(1, len(self.keys) + 1))
        settings = DataTable("Settings that differ", ["variant", *self.keys], told, "", words)
        return page(
            COMPARISON.replace("fedkd compare", "fedkd sweep").replace("These runs", "This sweep"),
            page_title=f"Sweep {self.name}",
            verdict=self._verdict(),
            notes=self.notes[1:],
            scoreboard=board,
            panels=[self._over("bytes"), self._over("rounds")],
            settings=settings,
        )

    def _verdict(self) -> str:
        if self.best < 0:
            return "No run knows the accuracy of its student."
        best = self.variants[self.best]
        cost = size(_moved(best))
        return (
            f"The best student is that of {short(best.name, 60)}: {share(best.values('student'))} after {cost} in all."
        )

    def _over(self, axis: str) -> Panel:
        lines = []
        for i, variant in enumerate(self.variants[:DRAWN]):
            curve = [(moved if axis == "bytes" else round_, y) for round_, moved, y in variant.curve()]
            lines.append(Line(short(variant.name, 40), thinned(curve), i % COLORS + 1, i // COLORS))
        form = size if axis == "bytes" else whole
        svg = charts.line_chart(
            lines,
            title=f"Student accuracy over {'bytes moved' if axis == 'bytes' else 'rounds'}",
            x_label="bytes moved so far by all clients, up and down (log scale)" if axis == "bytes" else "round",
            y_label="test accuracy of the student",
            x_format=form,
            y_limits=(0.0, 1.0),
            log_x=axis == "bytes",
            whole_x=axis == "rounds",
        )
        asks = {"bytes": "Which variant buys most accuracy for its bytes?", "rounds": "Which variant learns fastest?"}
        cut = f" Drawn: the first {DRAWN} of {len(self.variants)}." if len(self.variants) > DRAWN else ""
        data = DataTable(
            "Data table",
            ["variant", "moved so far" if axis == "bytes" else "round", "student"],
            [
                [line.name, form(x), percent(y)]
                for line in lines
                for x, y in (line.points[i] for i in thin(len(line.points), 20))
            ],
            "At most 20 points of each variant, evenly spread.",
        )
        caption = f"{asks[axis]} Means over seeds.{cut}"
        return panel(axis, f"Accuracy over {axis}", caption, svg, line_legend(lines), data)


HEADS = ("runs", "student", "ensemble", "local", "up/cl", "moved", "time")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1; None for one value), median and the values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "median": statistics.median(values), "values": list(values)}


def share(values: Sequence[float]) -> str:
    """Return shares as people read them: ``[0.91, 0.93]`` as ``"92.0 ± 1.4%"``, nothing as a dash."""
    if len(values) < 2:
        return percent(values[0] if values else None)
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}%"


def _cells(variant: Variant) -> list[str]:
    done = sum(run.run is not None for run in variant.runs)
    runs = str(done) if done == len(variant.runs) else f"{done} of {len(variant.runs)}"
    scores = (share(variant.values(key)) for key in ("student", "ensemble", "local_mean"))
    up, time = variant.mean("bytes_up_per_client"), variant.mean("seconds")
    return [runs, *scores, size(up), size(_moved(variant)), seconds(time)]


def _moved(variant: Variant) -> float | None:
    return total([variant.mean("bytes_up"), variant.mean("bytes_down")])


def _latex_share(values: Sequence[float]) -> str:
    if not values:
        return "--"
    return share(values).removesuffix("%").replace("±", "$\\pm$")


def _latex_text(text: str) -> str:
    """Return ``text`` with all that LaTeX would take as a command written out."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"|": "\\textbar{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(letter, letter) for letter in text)
