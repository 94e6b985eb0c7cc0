"""From a run directory to one page: ``write_report(run)`` reads metrics.jsonl and summary.json, writes report.html.

The page is self-contained (no script, nothing loaded), works while a run is unfinished, and never looks better than the
run was: what is not known is said to be unknown, and privacy that is not stated in full is printed as none. Reading,
arithmetic and words are here, pictures in :mod:`fedkd.charts`, looks in :mod:`fedkd.report_template`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedkd import charts
from fedkd.charts import Band, Line, Pair, percent, points, seconds, short, size, swatch
from fedkd.errors import DataError, FedkdError, did_you_mean
from fedkd.files import write_atomic
from fedkd.records import RoundReport
from fedkd.report_template import CSS, REPORT

METRICS, SUMMARY, CONFIG, PAGE = "metrics.jsonl", "summary.json", "config.toml", "report.html"
MARKS = (METRICS, SUMMARY, CONFIG)  # any of them makes a directory a run directory
POINTS = 200  # of a line; beyond that, evenly spread rounds are drawn
ROWS = 100  # of a data table
CLIENTS = 30  # rows of a chart over clients
COLUMNS = 25  # columns of a chart over rounds; beyond that, neighboring rounds share one
CLASSES = 20  # of the confusion matrix; beyond that, the classes with the fewest mistakes are gathered
LARGEST = 1e15  # number that is believed
PHASES = ("clients", "aggregate", "distill", "evaluate")
UNKNOWN = "Not known in this run."
WORDS = {"architecture", "last error", "answer"}  # heads of columns that hold words, not numbers


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says: its finished rounds in order, its summary (may be empty) and what was odd about it."""

    path: Path
    rounds: list[RoundReport]
    summary: dict[str, Any]
    config_text: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that the run gave itself, or that of its directory."""
        return str(self.summary.get("name") or self.path.resolve().name)

    @property
    def finished(self) -> bool:
        """Whether the summary says that the run came to its end."""
        return self.summary.get("finished") is True

    @property
    def scoreboard(self) -> dict[str, Any]:
        """The scoreboard of the summary; while there is none, what the last round and the bytes so far say."""
        given = part(self.summary, "scoreboard")
        names = ("student", "ensemble", "local_mean", "local_best", "local_worst")
        board: dict[str, Any] = {name: self.last(name) for name in names}
        asked = [status for key in self.clients for status in self.statuses(key)]
        for way, counted in (("up", asked.count("answered")), ("down", len(asked))):
            total = self.moved(way)
            board[f"bytes_{way}_per_client"] = total / counted if total is not None and counted else None
        return board | {key: value for key, value in given.items() if value is not None}

    @property
    def clients(self) -> list[str]:
        """Keys of all clients that the run heard of; numbers in their order, then words."""
        keys = {key for r in self.rounds for key in r.clients} | set(part(self.summary, "clients"))
        return sorted(keys, key=lambda key: (0, int(key), "") if key.isdecimal() and len(key) < 30 else (1, 0, key))

    def series(self, metric: str) -> list[tuple[float, float | None]]:
        """Return (round, value) of a metric; None where it is not known."""
        return [(float(r.round), real(r.metrics.get(metric))) for r in self.rounds]

    def last(self, metric: str) -> float | None:
        """Return the value of a metric in the last round that knows it."""
        return next((y for _, y in reversed(self.series(metric)) if y is not None), None)

    def statuses(self, key: str) -> list[str]:
        """Return how a client did in each round in which it was asked."""
        return [str(s) for r in self.rounds if (s := part(r.clients, key).get("status"))]

    def moved(self, way: str) -> float | None:
        """Return the bytes of all rounds and clients, ``way`` "up" or "down"."""
        known = [b for r in self.rounds if (b := round_bytes(r, way)) is not None]
        return sum(known) if known else None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration: of the summary, or of config.toml while there is no summary."""
        try:
            return part(self.summary, "config") or tomllib.loads(self.config_text)
        except tomllib.TOMLDecodeError:
            return {}

    def traffic(self) -> list[float]:
        """Return, for each round, the bytes moved so far by all clients, up and down."""
        total, sums = 0.0, []
        for r in self.rounds:
            total += (round_bytes(r, "up") or 0.0) + (round_bytes(r, "down") or 0.0)
            sums.append(total)
        return sums


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
    tables: Sequence[DataTable] = field(default_factory=tuple)
    unknown: str = UNKNOWN


def write_report(run: Path) -> Path:
    """Read the run directory ``run``, write its ``report.html`` (whole or not at all) and return that path."""
    page = render(read_run(run))
    target = Path(run) / PAGE
    try:
        write_atomic(target, page.encode("utf-8", "replace"), durable=False)
    except OSError as error:
        raise FedkdError(f"cannot write {str(target)!r}: {error.strerror}") from None
    return target


def read_run(path: Path) -> Run:
    """Read a run directory; raise :class:`DataError` if it is none, has no finished round or holds a damaged line.

    The last line of metrics.jsonl may be torn (the process was killed while writing): it is left out, with a note.
    """
    path = Path(path)
    _check_run_directory(path)
    notes: list[str] = []
    rounds: dict[int, RoundReport] = {}
    for report in _read_metrics(path / METRICS, notes):
        if report.round in rounds:
            notes.append(f"{METRICS} holds round {report.round} more than once; the later line counts.")
        rounds[report.round] = report
    if not rounds:
        raise DataError(f"{str(path)!r} has no finished round in {METRICS}{'; ' + notes[0] if notes else '.'}")
    summary = _read_summary(path / SUMMARY, notes)
    return Run(path, [rounds[r] for r in sorted(rounds)], summary, _read_config(path / CONFIG), tuple(notes))


def render(run: Run) -> str:
    """Return the page of a run. The same run gives the same page, byte for byte."""
    board = run.scoreboard
    provenance = part(run.summary, "provenance")
    lines = run.config_text.splitlines() or [f"{key} = {_plain(value)}" for key, value in run.config.items()]
    rows = [[_words(key), short(_plain(value), 300)] for key, value in provenance.items() if key != "command"]
    return (
        environment()
        .from_string(REPORT)
        .render(
            page_title=f"{short(run.name, 80)} – fedkd report",
            css=Markup(CSS),
            name=short(run.name, 120),
            finished=run.finished,
            facts=_facts(run),
            privacy=_privacy(part(run.summary, "privacy")),
            notes=_notes(run, board),
            verdict=_verdict(run, board),
            tiles=_tiles(run, board),
            sections=[
                {"title": "Does it work?", "panels": [_accuracy(run), _accuracy_by_bytes(run, board)]},
                {"title": "What does each client get?", "panels": [_gain(run, board), _presence(run)]},
                {"title": "Where does the time go?", "panels": [_latency(run), _seconds(run)]},
                {
                    "title": "Can its answers be trusted?",
                    "panels": [_reliability(run), _confusion(run), _loss(run), _entropy(run)],
                },
                {"title": "What does it give away?", "panels": [_released(run)]},
            ],
            command=short(str(provenance.get("command") or ""), 2000),
            provenance=DataTable("Provenance", ["what", "value"], rows[:ROWS], text=frozenset({1})),
            config="\n".join(short(line, 300) for line in lines[:200]),
        )
    )


def environment() -> jinja2.Environment:
    """Return the Jinja2 environment of all pages: autoescape on, and a name that is missing is an error."""
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def real(value: object) -> float | None:
    """Return a JSON value as a float, or None: null, NaN, words and what no run can measure are all "not known"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def part(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the table under ``key``, empty where there is none."""
    value = table.get(key)
    return value if isinstance(value, dict) else {}


def listed(table: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list under ``key``, empty where there is none."""
    value = table.get(key)
    return value if isinstance(value, list) else []


def round_bytes(report: RoundReport, way: str) -> float | None:
    """Return the bytes of a round over all clients, ``way`` "up" or "down"; the sum over clients where no total is."""
    total = real(report.metrics.get(f"bytes_{way}"))
    if total is not None:
        return total
    each = [b for row in report.clients.values() if (b := real(row.get(f"bytes_{way}"))) is not None]
    return sum(each) if each else None


def has_guarantee(run: Run) -> bool:
    """Whether the run states a finite epsilon in full: with delta, unit and neighbors. All else fails closed."""
    return not _privacy(part(run.summary, "privacy"))["alarm"]


def safe(text: str) -> Markup:
    """Mark the output of :mod:`fedkd.charts`, which escapes for itself, as markup."""
    return Markup(text)


def is_run_directory(path: Path) -> bool:
    """Whether ``path`` is a directory in which a run has begun."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _check_run_directory(path: Path) -> None:
    if is_run_directory(path):
        return
    if path.is_file():
        hint = f" Give its directory: {str(path.parent)!r}." if is_run_directory(path.parent) else ""
        raise DataError(f"{str(path)!r} is a file, expected a run directory.{hint}")
    try:
        siblings = sorted(p.name for p in path.parent.iterdir() if p.name != path.name and is_run_directory(p))
    except OSError:
        siblings = []
    hint = did_you_mean(path.name, siblings)
    if path.is_dir():
        raise DataError(f"{str(path)!r} is no run directory: it has no {METRICS}.{hint}")
    raise DataError(f"there is no run directory {str(path)!r}.{hint}")


def _read_metrics(path: Path, notes: list[str]) -> list[RoundReport]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    reports = []
    for i, line in numbered:
        try:
            reports.append(_round_report(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if i == numbered[-1][0]:
                notes.append(f"The last line of {METRICS} (line {i}) is torn and was left out.")
                break
            raise DataError(f"{str(path)!r} line {i} is damaged: {_one_line(error)}") from None
    return reports


def _round_report(line: Any) -> RoundReport:
    number = line.get("round") if isinstance(line, dict) else None
    if type(number) is not int or not 1 <= number <= LARGEST:
        raise ValueError("expected an object with the key 'round', a whole number from 1")
    clients = {str(key): row for key, row in part(line, "clients").items() if isinstance(row, dict)}
    return RoundReport(line["round"], part(line, "metrics"), clients, part(line, "seconds"), part(line, "latency"))


def _read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
        if not isinstance(summary, dict):
            raise ValueError(f"expected an object, got {type(summary).__name__}")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        notes.append(f"{SUMMARY} is damaged and was left out: {_one_line(error)}")
        return {}
    return summary


def _read_config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # the page then shows what the summary says


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---- words -----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _words(key: str) -> str:
    return short(str(key).replace("_", " "), 60)


def _count(many: int, one: str) -> str:
    return f"{many:,} {one}" if many == 1 else f"{many:,} {one}{'es' if one.endswith('s') else 's'}"


def _facts(run: Run) -> list[str]:
    data = part(run.summary, "data")
    facts = [short(str(data["name"]), 60)] if data.get("name") else []
    for key, word in (("classes", "class"), ("private", "private sample"), ("transfer", "transfer sample")):
        if (many := real(data.get(key))) is not None:
            facts.append(_count(int(many), word))
    facts += [_count(len(run.clients), "client"), _count(len(run.rounds), "round")]
    seed = part(run.summary, "provenance").get("seed", run.config.get("seed"))
    return facts + ([f"seed {short(_plain(seed), 20)}"] if seed is not None else [])


def _privacy(privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the banner. It is calm only for a finite epsilon with delta, unit and neighbors; all else fails closed."""
    guarantee = short(str(privacy.get("guarantee") or "").strip(), 80)
    why = short(_plain(privacy.get("why")), 600) if privacy.get("why") else ""
    if not privacy:
        why = "This run has not stated its privacy (yet). Until it does, read it as none."
        return {"alarm": True, "headline": "privacy: NONE", "text": f"Epsilon is infinite. {why}"}
    epsilon = real(privacy.get("epsilon"))
    lacking = [key for key in ("delta", "unit", "neighbors") if privacy.get(key) in (None, "")]
    if guarantee.upper().startswith("NO") or not guarantee or epsilon is None or epsilon < 0:
        headline = guarantee if guarantee.upper().startswith("NO ") else "NONE"
        return {"alarm": True, "headline": f"privacy: {headline}", "text": f"Epsilon is infinite. {why}".strip()}
    if lacking:
        text = f"An epsilon was claimed without {', '.join(lacking)}; such a number promises nothing. {why}"
        return {"alarm": True, "headline": "privacy: NONE", "text": text.strip()}
    text = f"delta {privacy['delta']}, unit: {privacy['unit']}, neighbors: {privacy['neighbors']}. {why}"
    return {"alarm": False, "headline": f"privacy: {guarantee}, epsilon {epsilon:g}", "text": short(text.strip(), 900)}


def _notes(run: Run, board: Mapping[str, Any]) -> list[str]:
    notes = [] if run.finished else [f"The run is unfinished: what follows covers {_count(len(run.rounds), 'round')}."]
    notes += run.notes
    warnings = [str(w) for w in listed(run.summary, "warnings")]
    notes += [short(w, 500) for w in warnings[:20]]
    if len(warnings) > 20:
        notes.append(f"{len(warnings) - 20} more warnings are in {SUMMARY}.")
    return notes


def _verdict(run: Run, board: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain-language sentence: what the student is worth, compared with what was there without it."""
    student, mean, best = (real(board.get(key)) for key in ("student", "local_mean", "local_best"))
    pooled, up = real(board.get("pooled")), real(board.get("bytes_up_per_client"))
    sentences, bad = [], False
    if student is None:
        lead = "The student's accuracy is not known in this run."
        sentences.append("Deployments do not report test accuracy unless the server holds labeled test data.")
    elif mean is None:
        lead = f"The student answers {percent(student)} of the test set correctly."
        sentences.append("How good the clients are alone is not known, so neither is the gain.")
    else:
        bad = student < (mean if best is None else best)
        lead = f"The student answers {percent(student)} of the test set correctly,"
        than_best = "." if best is None else f" and {_gap(student - best)} the best one."
        sentences.append(f"{_gap(student - mean)} the average client alone{than_best}")
        if best is not None and bad:
            sentences.append(
                "So the best client is better off with its own model."
                if student >= mean
                else "Distillation made things worse: look at the teacher and at the transfer set."
            )
    if student is not None and pooled is not None:
        sentences.append(f"It is {_gap(student - pooled)} a model trained on everyone's data in one place.")
    if up is not None:
        sentences.append(f"Each client sent {size(up)} a round{_fedavg_clause(board)}.")
    return {"lead": lead, "rest": " ".join(sentences), "bad": bad}


def _gap(difference: float) -> str:
    """Return ``"33.3 points above"``; a difference that rounds to nothing is ``"level with"``."""
    text = f"{abs(100 * difference):.1f}"
    return "level with" if text == "0.0" else f"{text} points {'above' if difference > 0 else 'below'}"


def _fedavg(board: Mapping[str, Any]) -> tuple[bool | None, str, float | None]:
    """Return whether FedAvg could have run, why (not), and its bytes each way per client and round."""
    fedavg = part(board, "fedavg")
    possible = fedavg.get("possible")
    cost = real(fedavg.get("bytes_per_client_round"))
    return possible if isinstance(possible, bool) else None, short(str(fedavg.get("why") or ""), 200), cost


def _fedavg_clause(board: Mapping[str, Any]) -> str:
    possible, why, cost = _fedavg(board)
    ours = real(board.get("bytes_up_per_client"))
    if possible is False:
        return f"; FedAvg is impossible here{' (' + why + ')' if why else ''}"
    if possible and cost and ours:
        return f"; FedAvg would send {size(cost)}, {_times(cost / ours)}"
    return ""


def _times(ratio: float) -> str:
    if ratio >= 1.05:
        return f"{ratio:,.0f} times as much" if ratio >= 9.95 else f"{ratio:.1f} times as much"
    return "about as much" if ratio > 0.95 else f"{percent(ratio)} of that"


def _tiles(run: Run, board: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = {key: real(board.get(key)) for key in ("student", "local_mean", "local_best", "ensemble", "pooled")}
    student = value["student"]

    def tile(key: str, label: str, aside: str, *, against: bool = True) -> dict[str, Any]:
        known = value[key]
        if known is None:
            return {"label": label, "value": "–", "share": None, "aside": "not known"}
        if against and student is not None:
            aside = f"student {points(student - known)} points"
        return {
            "label": label,
            "value": percent(known),
            "share": round(100 * min(max(known, 0.0), 1.0), 1),
            "aside": aside,
        }

    up, down = (real(board.get(f"bytes_{way}_per_client")) for way in ("up", "down"))
    possible, why, cost = _fedavg(board)
    total = run.moved("up")
    whole = "" if total is None or not run.clients else f", {size(total / len(run.clients))} in all"
    if possible is False:
        fedavg = {"value": "impossible", "aside": why or "reason not known"}
    elif possible and cost is not None:
        fedavg = {
            "value": size(cost),
            "aside": f"each way, per client and round{', ' + _times(cost / up) if up else ''}",
        }
    else:
        fedavg = {"value": "–", "aside": "not known"}
    return [
        tile("student", "Student", "of the test set right", against=False),
        tile("local_mean", "Average client", "test accuracy"),
        tile("local_best", "Best client", "test accuracy"),
        tile("ensemble", "Ensemble", "on the transfer set", against=False),  # not the test set
        tile("pooled", "Pooled data", "test accuracy"),
        {
            "label": "Sent per client",
            "value": size(up),
            "share": None,
            "aside": "not known" if up is None else f"a round{whole}; received {size(down)} a round",
        },
        {"label": "FedAvg would send", "share": None, **fedavg},
    ]


# ---- panels ----------------------------------------------------------------------------------------------------------


def _whole(x: float) -> str:
    return f"{x:.0f}"


def thinned(line: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Return at most ``POINTS`` points of a line, evenly spread."""
    return [line[i] for i in charts.thin(len(line), POINTS)]


def _accuracy(run: Run) -> Panel:
    low, high = run.series("local_worst"), run.series("local_best")
    band = [(x, a, b) for (x, a), (_, b) in zip(low, high, strict=True)]
    lines = _accuracy_lines(run, [float(r.round) for r in run.rounds])
    svg = charts.line_chart(
        lines,
        title="Test accuracy over rounds",
        x_label="round",
        y_label="accuracy",
        x_format=_whole,
        y_limits=(0.0, 1.0),
        whole_x=True,
        band=Band([band[i] for i in charts.thin(len(band), POINTS)], 3) if lines else None,
    )
    student, mean = run.last("student"), run.last("local_mean")
    answer = UNKNOWN
    if student is not None and mean is not None:
        answer = f"After round {run.rounds[-1].round} it is {_gap(student - mean)} the average client."
    elif student is not None:
        answer = f"It reaches {percent(student)}; the clients' own accuracy is not known."
    names = ["student", "ensemble", "local_mean", "local_best", "local_worst", "coverage"]
    head = ["round", "student", "ensemble", "local mean", "local best", "local worst", "coverage"]
    rows = [[str(r.round), *(percent(real(r.metrics.get(name))) for name in names)] for r in run.rounds]
    items = _line_legend(lines)
    if any(a is not None and b is not None for _, a, b in band):
        items.append((swatch("band", 3), "worst to best client"))
    caption = f"Is the student better than what clients have alone? {answer}"
    return _panel("accuracy", "Accuracy over rounds", caption, svg, items, _data(head, rows))


def _accuracy_lines(run: Run, xs: Sequence[float]) -> list[Line]:
    lines = []
    for name, metric, color, dash in (
        ("student", "student", 1, 0),
        ("ensemble, on the transfer set", "ensemble", 2, 1),
        ("average client alone", "local_mean", 3, 0),
    ):
        values = [y for _, y in run.series(metric)]
        if any(y is not None for y in values):
            lines.append(Line(name, thinned(list(zip(xs, values, strict=True))), color, dash))
    return lines


def _line_legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(swatch("line", line.color, line.dash), line.name) for line in lines]


def _accuracy_by_bytes(run: Run, board: Mapping[str, Any]) -> Panel:
    moved = run.traffic()
    lines = _accuracy_lines(run, moved)[:2]
    possible, why, cost = _fedavg(board)
    whole = 2 * (cost or 0.0) * len(run.clients)  # weights go down and up again
    mark = (whole, f"one FedAvg round: {size(whole)}") if possible and whole else None
    svg = charts.line_chart(
        lines,
        title="Test accuracy over bytes moved",
        x_label="bytes moved so far by all clients, up and down (log scale)",
        y_label="accuracy",
        x_format=size,
        y_limits=(0.0, 1.0),
        log_x=True,
        mark=mark,
    )
    if possible is False:
        answer = f"FedAvg is impossible here{': ' + why if why else ''}."
    elif mark and moved[-1] > 0:
        answer = f"The whole run moved {size(moved[-1])}; one round of FedAvg would move {size(mark[0])}."
    else:
        answer = f"The whole run moved {size(moved[-1])}." if moved[-1] else UNKNOWN
    rows = [
        [
            str(r.round),
            size(total),
            size(round_bytes(r, "up")),
            size(round_bytes(r, "down")),
            percent(real(r.metrics.get("student"))),
            percent(real(r.metrics.get("ensemble"))),
        ]
        for r, total in zip(run.rounds, moved, strict=True)
    ]
    head = ["round", "so far", "up", "down", "student", "ensemble"]
    caption = f"What does accuracy cost in bytes? {answer}"
    return _panel("bytes", "Accuracy over bytes", caption, svg, _line_legend(lines), _data(head, rows))


def _client_name(run: Run, key: str) -> str:
    architecture = str(part(part(run.summary, "clients"), key).get("architecture") or "")
    return f"{short(key, 9)} {architecture.partition('(')[0].strip()}".strip()


def _gain(run: Run, board: Mapping[str, Any]) -> Panel:
    stated = part(run.summary, "clients")
    pairs: dict[str, tuple[float | None, float | None]] = {}
    for key in run.clients:
        told: list[float | None] = [real(part(r.clients, key).get("local")) for r in run.rounds]
        told = [v for v in told if v is not None] or [None]
        row = part(stated, key)
        before, after = real(row.get("before")), real(row.get("after"))
        pairs[key] = (told[0] if before is None else before, told[-1] if after is None else after)
    known_keys = [key for key in run.clients if pairs[key] != (None, None)]
    gains = {key: after - before for key in known_keys for before, after in [pairs[key]] if None not in (before, after)}  # type: ignore[operator]
    keys, cut = known_keys, ""
    if len(keys) > CLIENTS:
        ranked = sorted(keys, key=lambda key: (gains.get(key, 0.0), keys.index(key)))
        half = CLIENTS // 2
        keys = ranked[:half] + ranked[-half:]
        cut = f" Drawn: the {half} clients that gained least and the {half} that gained most, of {len(ranked)}."
    student = real(board.get("student"))
    svg = charts.dumbbell_chart(
        [Pair(_client_name(run, key), *pairs[key]) for key in keys],
        title="Accuracy of each client before and after",
        x_label="test accuracy of the client's own model",
        reference=None if student is None else (student, f"student {percent(student)}"),
    )
    answer = f"{sum(g > 0 for g in gains.values())} of {len(gains)} own models got better." if gains else UNKNOWN
    if gains and len(run.rounds) == 1:
        answer = "After one round nothing has come back to the clients yet."
    if gains and student is not None:
        beaten = sum(after is not None and after < student for _, after in pairs.values())
        answer += f" The student beats the own model of {beaten} of {len(known_keys)}."
    answer += cut
    rows = [
        [
            short(key, 40),
            short(str(part(stated, key).get("architecture") or "not known"), 60),
            percent(pairs[key][0]),
            percent(pairs[key][1]),
            points(gains.get(key)),
        ]
        for key in run.clients
    ]
    head = ["client", "architecture", "first round", "last round", "points"]
    items = [(swatch("ring", 3), "alone, first round"), (swatch("dot", 1), "after the last round")]
    caption = f"Who gains from taking part? {answer}"
    return _panel("clients", "Every client, before and after", caption, svg, items, _data(head, rows, what="clients"))


def _bins(run: Run) -> tuple[list[list[RoundReport]], list[str], str]:
    """Return groups of neighboring rounds that share a column, the names of the columns and a note if any is shared."""
    per = math.ceil(len(run.rounds) / COLUMNS)
    groups = [run.rounds[i : i + per] for i in range(0, len(run.rounds), per)]
    names = [str(group[0].round) for group in groups]
    return groups, names, f" Each column covers {per} rounds" if per > 1 else ""


def _presence(run: Run) -> Panel:
    groups, names, shared = _bins(run)
    rank = {status: i for i, status in enumerate(charts.STATUSES)}
    tally = {key: run.statuses(key) for key in run.clients}
    missed = {key: sum(status != "answered" for status in tally[key]) for key in run.clients}
    keys, cut = _fewest(run.clients, missed, "that missed most")

    def cell(key: str, group: Sequence[RoundReport]) -> str | None:
        found = [s for r in group if (s := str(part(r.clients, key).get("status"))) in rank]
        return f"st-{max(found, key=lambda s: rank[s])}" if found else None

    cells = [[cell(key, group) for group in groups] for key in keys]
    svg = charts.grid_chart(
        cells,
        title="Who answered in which round",
        rows=[_client_name(run, key) for key in keys],
        columns=names,
        x_label="round",
        y_label="client",
        glyphs=True,
    )
    asked = sum(len(statuses) for statuses in tally.values())
    answered = sum(statuses.count("answered") for statuses in tally.values())
    answer = f"{answered:,} of {asked:,} answers came in time.{cut}" if asked else UNKNOWN
    if shared:
        answer += f"{shared} and shows the worst of them."
    head = ["client", "asked", *charts.STATUSES, "last error"]
    rows = [
        [
            short(key, 40),
            str(len(tally[key])),
            *(str(tally[key].count(status)) for status in charts.STATUSES),
            _last_error(run, key),
        ]
        for key in run.clients
    ]
    words = {"late": "late, of an earlier round", "silent": "silent until the deadline"}
    items = [(swatch("status", status), words.get(status, status)) for status in charts.STATUSES]
    data = _data(head, rows, what="clients")
    return _panel("presence", "Who was there", f"Who answered, and when? {answer}", svg, items, data)


def _last_error(run: Run, key: str) -> str:
    found = (part(r.clients, key).get("error") for r in reversed(run.rounds))
    return short(" ".join(str(next((error for error in found if error), "")).split()), 120)


def _fewest(keys: Sequence[str], missed: Mapping[str, float], which: str) -> tuple[list[str], str]:
    """Return the clients to draw, in their order: all, or those with the highest number in ``missed``."""
    if len(keys) <= CLIENTS:
        return list(keys), ""
    chosen = set(sorted(keys, key=lambda key: -missed[key])[:CLIENTS])
    return [key for key in keys if key in chosen], f" Drawn: the {CLIENTS} clients {which}, of {len(keys)}."


def _latency(run: Run) -> Panel:
    groups, names, shared = _bins(run)
    known = {
        key: [v for r in run.rounds if (v := real(r.latency.get(key))) is not None and v >= 0] for key in run.clients
    }
    every = sorted(v for values in known.values() for v in values)
    keys, cut = _fewest(
        run.clients, {key: max(known[key], default=0.0) for key in run.clients}, "that were slowest once"
    )
    edges = _edges(every)

    def cell(key: str, group: Sequence[RoundReport]) -> str | None:
        found = [v for r in group if (v := real(r.latency.get(key))) is not None and v >= 0]
        return f"level-{1 + sum(max(found) > edge for edge in edges[:-1])}" if found else None

    svg = charts.grid_chart(
        [[cell(key, group) for group in groups] for key in keys],
        title="How long each answer took",
        rows=[_client_name(run, key) for key in keys],
        columns=names,
        x_label="round",
        y_label="client",
    )
    answer = UNKNOWN
    if every:
        slowest = max(run.clients, key=lambda key: max(known[key], default=-1.0))
        answer = f"Half of the answers took at most {seconds(every[(len(every) - 1) // 2])}"
        answer += f"; the slowest, of client {short(slowest, 20)}, {seconds(every[-1])}.{cut}"
        if shared:
            answer += f"{shared} and shows the slowest answer."
    rows = [
        [short(key, 40), str(len(v)), seconds(v[(len(v) - 1) // 2] if v else None), seconds(v[-1] if v else None)]
        for key in run.clients
        for v in [sorted(known[key])]
    ]
    items = [(swatch("level", f"level-{i + 1}"), f"up to {seconds(edge)}") for i, edge in enumerate(edges)]
    data = _data(["client", "answers", "median", "slowest"], rows, what="clients")
    return _panel("latency", "How long answers took", f"Whom did the round wait for? {answer}", svg, items, data)


def _edges(values: Sequence[float]) -> list[float]:
    """Return upper ends of at most five classes of ``values``, in equal ratios where they span a wide range."""
    if not values:
        return []
    low, high = values[0], values[-1]
    if seconds(low) == seconds(high):
        return [high]
    steps = [(i + 1) / charts.LEVELS for i in range(charts.LEVELS)]
    floor = max(low, high / 1e4)
    if high / floor > 8:
        return [floor * (high / floor) ** step for step in steps]
    return [low + (high - low) * step for step in steps]


def _reliability(run: Run) -> Panel:
    given = part(run.summary, "reliability")
    curves, items, asides, rows = [], [], [], []
    for who, color, dash in (("student", 1, 0), ("teacher", 2, 1)):
        bins = [b for b in listed(given, who) if isinstance(b, dict)]
        triples = [tuple(real(b.get(key)) for key in ("confidence", "accuracy", "count")) for b in bins]
        known = [(c, a, n) for c, a, n in triples if c is not None and a is not None and n and n > 0]
        ece = run.last(f"{who}_ece")
        if known:
            curves.append((who, known[:50], color))
            items.append((swatch("line", color, dash), who + ("" if ece is None else f", ECE {ece:.3f}")))
            rows += [[who, percent(c), percent(a), f"{n:,.0f}"] for c, a, n in known[:50]]
        if ece is not None:
            asides.append(f"the {who} is off by {100 * ece:.1f} points on average")
    svg = charts.reliability_chart(curves, title="Accuracy over confidence")
    answer = f"{asides[0][:1].upper()}{'; '.join(asides)[1:]} (ECE)." if asides else UNKNOWN
    items = items + [(swatch("reference"), "perfectly calibrated")] if items else []
    caption = f"When it says 80% sure, is it right 80% of the time? {answer}"
    caption += " Larger dots hold more samples." if svg else ""
    data = _data(["who", "confidence", "accuracy", "samples"], rows)
    return _panel("reliability", "Reliability", caption, svg, items, data)


def _loss(run: Run) -> Panel:
    """Accuracy only counts who is right; the loss also asks how much was bet on it."""
    lines = [
        Line(who, thinned(run.series(f"{who}_nll")), color, dash)
        for who, color, dash in (("student", 1, 0), ("teacher", 2, 1))
        if run.last(f"{who}_nll") is not None
    ]
    svg = charts.line_chart(
        lines,
        title="Negative log-likelihood over rounds",
        x_label="round",
        y_label="negative log-likelihood, in nats",
        x_format=_whole,
        y_format=lambda y: f"{y:.2f}",
        y_limits=(0.0, math.inf),
        y_span=0.2,
        whole_x=True,
    )
    student, teacher = run.last("student_nll"), run.last("teacher_nll")
    answer = UNKNOWN
    if student is not None:
        answer = f"The student's loss is {student:.2f}" + (
            "." if teacher is None else f", the teacher's {teacher:.2f}."
        )
        answer += " Lower is better; sure and wrong costs most."
    head = ["round", "student NLL", "student ECE", "teacher NLL", "teacher ECE"]
    names = ["student_nll", "student_ece", "teacher_nll", "teacher_ece"]
    rows = [[str(r.round), *(_three(real(r.metrics.get(name))) for name in names)] for r in run.rounds]
    caption = f"Does it put its bets on the right answer? {answer}"
    return _panel("loss", "Loss over rounds", caption, svg, _line_legend(lines), _data(head, rows))


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _confusion(run: Run) -> Panel:
    counts, names = _matrix(run)
    title, question = "Confusion", "What does the student take for what?"
    if not counts:
        return _panel("confusion", title, f"{question} {UNKNOWN}", "", [])
    total, hits = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(counts)))
    mistakes = sorted(
        ((counts[i][j], i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j and counts[i][j]),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    answer = "It makes no mistake."
    if mistakes:
        n, i, j = mistakes[0]
        answer = f"Most often {short(names[i], 30)!r} for {short(names[j], 30)!r} ({n:g} times)."
    gathered, labels, cut = _gathered(counts, names)
    svg = charts.confusion_chart(gathered, labels, title="Truth by answer of the student")
    rows = [
        [short(names[i], 40), short(names[j], 40), f"{n:g}", percent(n / sum(counts[i]))] for n, i, j in mistakes[:20]
    ]
    top = _data(["truth", "answer", "times", "of that class"], rows, title="The most frequent mistakes")
    full = _data(
        ["truth \\ answer", *(short(label, 16) for label in labels)],
        [[short(label, 16), *(f"{n:g}" for n in row)] for label, row in zip(labels, gathered, strict=True)],
    )
    items = [(swatch("box", 1), "right"), (swatch("box", 2), "wrong")]
    share = f" {percent(hits / total)} of {total:,g} answers are right." if total else ""
    caption = f"{question} {answer}{share} Stronger color: larger share of the true class.{cut}"
    return _panel("confusion", title, caption, svg, items, top, full)


def _matrix(run: Run) -> tuple[list[list[float]], list[str]]:
    """Return the confusion matrix (C, C) and class names; empty unless it is square and all numbers."""
    counts = [[real(n) for n in row] if isinstance(row, list) else [] for row in listed(run.summary, "confusion")]
    if not counts or any(len(row) != len(counts) or any(n is None or n < 0 for n in row) for row in counts):
        return [], []
    named = [str(name) for name in listed(part(run.summary, "data"), "class_names")]
    names = named if len(named) == len(counts) else []
    return [[n or 0.0 for n in row] for row in counts], names or [str(i) for i in range(len(counts))]


def _gathered(counts: list[list[float]], names: list[str]) -> tuple[list[list[float]], list[str], str]:
    """Keep the classes with the most mistakes and add up the others; counts keep their total."""
    if len(counts) <= CLASSES:
        return counts, names, ""
    wrong = [sum(row) + sum(c[i] for c in counts) - 2 * row[i] for i, row in enumerate(counts)]
    kept = sorted(sorted(range(len(counts)), key=lambda i: -wrong[i])[: CLASSES - 1])
    place = {i: k for k, i in enumerate(kept)}
    gathered = [[0.0] * CLASSES for _ in range(CLASSES)]
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            gathered[place.get(i, CLASSES - 1)][place.get(j, CLASSES - 1)] += n
    rest = len(counts) - len(kept)
    cut = f" Drawn: the {len(kept)} classes with the most mistakes; the last row and column gather the other {rest}."
    return gathered, [names[i] for i in kept] + [f"other {rest}"], cut


def _entropy(run: Run) -> Panel:
    line = run.series("teacher_entropy")
    known = [(x, y) for x, y in line if y is not None]
    svg = (
        charts.line_chart(
            [Line("teacher", thinned(line), 2, 0)],
            title="Entropy of the teacher over rounds",
            x_label="round",
            y_label="mean entropy of the teacher, in nats",
            x_format=_whole,
            y_format=lambda y: f"{y:.2f}",
            y_limits=(0.0, math.inf),
            y_span=0.2,
            whole_x=True,
        )
        if known
        else ""
    )
    classes = real(part(run.summary, "data").get("classes"))
    answer = UNKNOWN
    if known:
        first, last = known[0][1], known[-1][1]
        way = (
            "stayed as sure as it was"
            if f"{first:.2f}" == f"{last:.2f}"
            else ("grew surer" if last < first else "grew less sure")
        )
        answer = f"It {way}: {first:.2f} in round {known[0][0]:.0f}, {last:.2f} in round {known[-1][0]:.0f}."
        if len(known) == 1:
            answer = f"Its mean entropy is {last:.2f}."
        scale = f", {math.log(classes):.2f} is a guess among {classes:.0f} classes" if classes and classes > 1 else ""
        answer += f" 0 is certain{scale}."
    rows = [
        [str(r.round), _three(y), percent(real(r.metrics.get("coverage")))]
        for r, (_, y) in zip(run.rounds, line, strict=True)
    ]
    data = _data(["round", "entropy (nats)", "coverage"], rows)
    return _panel("entropy", "How sure the teacher is", f"Do the clients come to one answer? {answer}", svg, [], data)


def _released(run: Run) -> Panel:
    items = [row for row in listed(run.summary, "released") if isinstance(row, dict)]
    rows = [
        [
            *(short(_plain(row.get(key)), 120) for key in ("what", "form")),
            size(real(row.get("bytes"))),
            short(_plain(row.get("to")), 40),
        ]
        for row in items[:ROWS]
    ]
    note = f"{len(items) - ROWS} more entries are in {SUMMARY}." if len(items) > ROWS else ""
    shown = (
        DataTable("What left each device", ["what", "form", "bytes", "to"], rows, note, frozenset({0, 1, 3}))
        if rows
        else None
    )
    totals = {
        key: [sum(real(part(r.clients, key).get(f"bytes_{way}")) or 0.0 for r in run.rounds) for way in ("up", "down")]
        for key in run.clients
    }
    each = [[short(key, 40), size(up), size(down)] for key, (up, down) in totals.items()]
    caption = "What exactly left each device?"
    caption += " No message has a field for inputs, labels, weights or gradients." if rows else ""
    data = _data(["client", "sent in all", "received in all"], each, title="Bytes by client", what="clients")
    return Panel("released", "What left each device", caption, shown=shown, tables=[data])


def _seconds(run: Run) -> Panel:
    found = {str(key) for r in run.rounds for key, value in r.seconds.items() if real(value) is not None}
    phases = [p for p in PHASES if p in found] + sorted(found - set(PHASES))[: charts.COLORS - len(PHASES)]
    groups, names, shared = _bins(run)

    def mean(group: Sequence[RoundReport], phase: str) -> float:
        return sum(max(0.0, real(r.seconds.get(phase)) or 0.0) for r in group) / len(group)

    svg = charts.stacked_chart(
        [(name, [mean(group, p) for p in phases]) for name, group in zip(names, groups, strict=True)],
        [short(p, 24) for p in phases],
        title="Seconds by phase and round",
        x_label="round",
        y_label="time",
    )
    totals = {p: sum(real(r.seconds.get(p)) or 0.0 for r in run.rounds) for p in phases}
    total = sum(totals.values())
    answer = UNKNOWN
    if total > 0:
        longest = max(totals, key=lambda p: totals[p])
        answer = (
            f"{seconds(total)} in all, {percent(totals[longest] / total)} of it in the phase {short(longest, 24)!r}."
        )
        if shared:
            answer += f"{shared} and shows their mean."
    rows = [[str(r.round), *(seconds(real(r.seconds.get(p))) for p in phases)] for r in run.rounds] if phases else []
    items = [
        (swatch("box", i % charts.COLORS + 1), f"{short(p, 24)}, {seconds(totals[p])}") for i, p in enumerate(phases)
    ]
    data = _data(["round", *(short(p, 24) for p in phases)], rows)
    return _panel("seconds", "Where the time went", f"Which phase takes the time? {answer}", svg, items, data)


def _panel(id: str, title: str, caption: str, svg: str, items: Sequence[tuple[str, str]], *tables: DataTable) -> Panel:
    caption = caption if svg else caption.replace(UNKNOWN, "").strip()  # the body of the card says it
    return Panel(id, title, caption, safe(svg), safe(charts.legend(items) if items else ""), tables=tables)


def _data(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "Data table", what: str = "rows"
) -> DataTable:
    """Return a table of at most ``ROWS`` rows, evenly spread."""
    kept = [rows[i] for i in charts.thin(len(rows), ROWS)]
    note = f"Shown: {len(kept)} of {len(rows)} {what}, evenly spread." if len(kept) < len(rows) else ""
    return DataTable(title, head, kept, note, frozenset(i for i, name in enumerate(head) if i and name in WORDS))
