"""Several runs side by side: one table for the terminal, one page with accuracy over rounds and over megabytes.

``compare_runs`` reads what :mod:`fedkd.report` shows and is as strict about it; nothing is trained or measured again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedkd.errors import FedkdError
from fedkd.journal import Run, listed, part, read_run, real, total
from fedkd.report import charts
from fedkd.report.axes import thin
from fedkd.report.charts import COLORS, Line
from fedkd.report.page import DataTable, Panel, line_legend, page, panel, thinned
from fedkd.report.table import Cell
from fedkd.report.template import COMPARISON
from fedkd.units import ceiling, percent, seconds, short, size, whole

WIDTH = 100  # columns of a terminal that the table never exceeds
DRAWN = 24  # lines that a chart can tell apart: eight colors times three dashes
LISTED = 100  # runs in the tables of the page
SETTINGS = 60  # keys in the table of settings
LINES = 3  # settings named in a row of the terminal's table
ABSENT = "–"
OTHER_DATA = "The runs used different data or test sets: their accuracies cannot be ranked against each other."
DATA_KEYS = ("data", "transfer", "partition", "clients")  # what deals the data, beside the seed
SAME = {"output", "resume", "threads"}  # keys that say where and how, not what


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs to set side by side, in the order they were given, with a short name for each that no other has."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]

    @property
    def best(self) -> int:
        """The index of the run with the best student; -1 where no run knows its accuracy.

        A replay that is not exact is no run that could have been, so it is not ranked.
        """
        scores = [real(run.scoreboard.get("student")) if _ranked(run) else None for run in self.runs]
        known = [(score, -i) for i, score in enumerate(scores) if score is not None]
        return -max(known)[1] if known else -1

    @property
    def notes(self) -> list[str]:
        """What was odd about the runs: unfinished ones, torn lines, damaged summaries."""
        notes = [] if self.same_data else [self._seeds() or OTHER_DATA]
        for name, run in zip(self.names, self.runs, strict=True):
            notes += [] if _ranked(run) else [f"{name} is a replay that is not exact: it is not ranked."]
            notes += [] if run.finished else [f"{name} is unfinished."]
            notes += [f"{name}: {note}" for note in run.notes]
        return notes

    @property
    def same_data(self) -> bool:
        """Whether no two runs state different data, transfer sets or test sizes; only then can scores be ranked."""
        return _alike(self.runs)

    def _seeds(self) -> str:
        """Return what to do where nothing but the seed makes the runs' data differ; "" where something else does."""
        seeds: dict[str, list[Run]] = {}
        for run in self.runs:
            seeds.setdefault(_value(run.config, "seed"), []).append(run)
        dealt = {tuple(_value(run.config, key) for key in DATA_KEYS) for run in self.runs}
        if ABSENT in seeds or len(seeds) < 2 or len(dealt) > 1 or not all(_alike(each) for each in seeds.values()):
            return ""
        told = sorted(seeds, key=lambda seed: (len(seed), seed))
        named = f"{', '.join(told[:-1])} and {told[-1]}" if len(told) <= 5 else f"{', '.join(told[:5])} and others"
        return f"Seeds {named} deal the data differently: compare equal seeds, or see the sweep's table."

    @property
    def tied(self) -> list[str]:
        """The names of the other runs whose student is as good as the best, to a tenth of a percent."""
        if self.best < 0:
            return []
        scores = [percent(real(run.scoreboard.get("student"))) for run in self.runs]
        rest = [i for i, run in enumerate(self.runs) if i != self.best and _ranked(run)]
        return [self.names[i] for i in rest if scores[i] == scores[self.best]]

    def settings(self) -> dict[str, list[str]]:
        """Return the settings that are not the same in all runs: key -> value in each run."""
        configs = [run.config for run in self.runs]
        keys = list(dict.fromkeys(key for config in configs for key in config if key not in SAME))
        rows = {key: [_value(config, key) for config in configs] for key in keys}
        told = [i for i, config in enumerate(configs) if config]  # a run that does not say differs in nothing
        rows = {key: [_replayed(run, key) for run in self.runs] for key in ("without", "replay of")} | rows
        return {key: values for key, values in rows.items() if len({values[i] for i in told}) > 1}

    def table(self) -> Table:
        """Return the scoreboard for a terminal, at most 100 columns wide; the best student is bold."""
        differing = self.settings()
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, caption=_caption(self), caption_justify="left")
        table.add_column("run", max_width=20, overflow="fold")
        for head in ("rounds", "student", "ensem", "local", "best", "moved", "privacy"):
            table.add_column(head, justify="right", no_wrap=True, max_width=8)
        table.add_column("differs in", max_width=24)
        for i, (name, run) in enumerate(zip(self.names, self.runs, strict=True)):
            cells: list[RenderableType] = [
                Text(short(name, 60)),
                *map(Text, _scores(run)),
                Cell(_differences(differing, i)),
            ]
            table.add_row(*cells, style="bold" if i == self.best and self.same_data else "")
        return table

    def html(self) -> str:
        """Return a self-contained page: scoreboard, accuracy over rounds and over megabytes, settings that differ."""
        board = DataTable(
            "Scoreboard",
            ["run", "rounds", "student", "ensemble", "mean client", "best client", "moved in all", "privacy", "time"],
            [
                [short(name, 60), *_scores(run), seconds(_time(run))]
                for name, run in list(zip(self.names, self.runs, strict=True))[:LISTED]
            ],
            f"{len(self.runs) - LISTED} more runs are not listed." if len(self.runs) > LISTED else "",
            best=self.best if self.same_data else -1,
        )
        differing = self.settings()
        rows = [[short(key, 40), *(short(v, 60) for v in values[:LISTED])] for key, values in differing.items()]
        heads = ["setting", *(short(name, 30) for name in self.names[:LISTED])]
        words = frozenset(range(1, len(heads)))
        same = "All runs have the same settings." if any(run.config for run in self.runs) else "No settings are known."
        settings = DataTable("Settings that differ", heads, rows[:SETTINGS], same if not rows else "", words)
        return page(
            COMPARISON,
            page_title="Comparison of " + (f"{len(self.runs)} runs" if len(self.runs) > 1 else "one run"),
            verdict=self._verdict(),
            notes=[short(note, 300) for note in self.notes[:30]],
            scoreboard=board,
            panels=[self._over_rounds(), self._over_bytes()],
            settings=settings,
        )

    def _verdict(self) -> str:
        if self.best < 0:
            return "No run knows the accuracy of its student."
        run, name = self.runs[self.best], self.names[self.best]
        score = percent(real(run.scoreboard.get("student")))
        tail = " None of the runs has a privacy guarantee." if not any(run.has_guarantee for run in self.runs) else ""
        if not self.same_data:
            why = self._seeds() or "The runs used different data or test sets, so none of them is the best."
            return f"{why}{tail}"
        moved = size(run.traffic()[-1])
        if self.tied:
            others = f"{short(self.tied[0], 60)}" + (f" and {len(self.tied) - 1} more" if len(self.tied) > 1 else "")
            return f"{short(name, 60)} and {others} tie for the best student: {score}.{tail}"
        return f"The best student is that of {short(name, 60)}: {score} after {moved} in all.{tail}"

    def _lines(self, by_bytes: bool) -> list[Line]:
        lines = []
        for i, (name, run) in enumerate(zip(self.names[:DRAWN], self.runs, strict=False)):
            series = run.series("student")
            xs = run.traffic() if by_bytes else [x for x, _ in series]
            line = thinned([(x, y) for x, (_, y) in zip(xs, series, strict=True)])
            if all(y is None for _, y in line):
                continue  # its name would be in the legend of a picture that it is not in
            lines.append(Line(short(name, 40), line, i % COLORS + 1, i // COLORS))
        return lines

    def _over_rounds(self) -> Panel:
        lines = self._lines(by_bytes=False)
        svg = charts.line_chart(
            lines,
            title="Student accuracy over rounds",
            x_label="round",
            y_label="test accuracy of the student",
            x_format=whole,
            y_limits=(0.0, 1.0),
            whole_x=True,
        )
        return self._panel("rounds", "Accuracy over rounds", "Which run learns fastest, round by round?", svg, lines)

    def _over_bytes(self) -> Panel:
        lines = self._lines(by_bytes=True)
        svg = charts.line_chart(
            lines,
            title="Student accuracy over bytes moved",
            x_label="bytes moved so far by all clients, up and down (log scale)",
            y_label="test accuracy of the student",
            x_format=size,
            y_limits=(0.0, 1.0),
            log_x=True,
        )
        return self._panel("bytes", "Accuracy over bytes", "Which run buys most accuracy for its bytes?", svg, lines)

    def _panel(self, id: str, title: str, caption: str, svg: str, lines: Sequence[Line]) -> Panel:
        cut = f" Drawn: the first {DRAWN} of {len(self.runs)} runs." if len(self.runs) > DRAWN else ""
        pairs = zip(self.names, self.runs, strict=True)
        without = [short(name, 40) for name, run in pairs if run.config.get("student") == "none"]
        cut += f" No student: {', '.join(without[:10])}." if without else ""
        form = size if id == "bytes" else whole
        rows = [
            [line.name, form(x), percent(y)]
            for line in lines
            for x, y in (line.points[i] for i in thin(len(line.points), 20))
        ]
        head = ["run", "moved so far" if id == "bytes" else "round", "student"]
        data = DataTable("Data table", head, rows, "At most 20 points of each run, evenly spread.")
        return panel(id, title, caption + cut, svg, line_legend(lines), data)


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Read run directories; raise a one-line :class:`FedkdError` for the first that cannot be compared."""
    if not runs:
        raise FedkdError("nothing to compare: give at least one run directory, as in: fedkd compare runs/*")
    read = tuple(read_run(Path(path)) for path in runs)
    return Comparison(read, tuple(_names(read)))


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names; those that are not unique become their paths, and a path given twice gets a number."""
    seen = Counter(run.name for run in runs)
    names = [run.name if seen[run.name] == 1 else str(run.path) for run in runs]
    twice, used = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        used[name] += 1
        if twice[name] > 1:
            names[i] = f"{name} ({used[name]})"
    return names


def _scores(run: Run) -> list[str]:
    board = run.scoreboard
    scores = (percent(real(board.get(key))) for key in ("student", "ensemble", "local_mean", "local_best"))
    rounds = str(len(run.rounds)) + ("" if run.finished else "+")
    return [rounds, *scores, size(run.traffic()[-1]), _privacy(run)]


def _data(run: Run) -> tuple[str, str, str]:
    """Return the data set, the transfer set and the size of the test set that a run states; "" where it does not."""
    data, provenance = part(run.summary, "data"), part(run.summary, "provenance")
    return tuple(str(one or "") for one in (data.get("name"), provenance.get("transfer_sha256"), data.get("test")))  # type: ignore[return-value]


def _alike(runs: Sequence[Run]) -> bool:
    """Return whether no two of ``runs`` state different data, transfer sets or test sizes."""
    stated = [_data(run) for run in runs]
    return all(len({one[i] for one in stated if one[i]}) <= 1 for i in range(3))


def _ranked(run: Run) -> bool:
    """Return whether a run could have been as it is told: all but replays that are not exact."""
    return part(run.summary, "replay_of").get("exact") is not False


def _replayed(run: Run, key: str) -> str:
    """Return which clients a replay was made ``without``, or what it is a ``replay of``; a dash for other runs."""
    told = part(run.summary, "replay_of")
    if key == "without":
        return ", ".join(map(str, listed(told, key))) or ABSENT
    return f"{told.get('run')}, {'exact' if _ranked(run) else 'not exact'}" if told else ABSENT


def _privacy(run: Run) -> str:
    return f"eps {ceiling(run.epsilon or 0.0)}" if run.has_guarantee else "NONE"


def _time(run: Run) -> float | None:
    return total(real(value) for r in run.rounds for value in r.seconds.values())


def _value(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return ABSENT
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _differences(differing: dict[str, list[str]], i: int) -> str:
    """Return the first few settings of run ``i`` that not all runs share; the number of rounds has its own column."""
    told = [f"{key} {short(v[i], 40)}" for key, v in differing.items() if key != "rounds" and v[i] != ABSENT]
    return ", ".join(told[:LINES]) + (f", {len(told) - LINES} more" if len(told) > LINES else "")


def _caption(comparison: Comparison) -> Text:
    differing = comparison.settings()
    lines = [
        "local, best: mean and best of the clients' own models. ensem: on the transfer set. moved: all clients' bytes."
    ]
    lines += [short(note, 200) for note in comparison.notes[:10]]
    for i, name in enumerate(comparison.names):
        told = [f"{key} = {values[i]}" for key, values in differing.items() if key != "rounds" and values[i] != ABSENT]
        lines += [f"{short(name, 60)}: {', '.join(told)}"] if len(told) > LINES else []
    return Text("\n".join(lines), style="dim")
