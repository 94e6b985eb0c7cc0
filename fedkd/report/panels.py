"""The panels of a report: pure functions from a run to one card each, which asks a question and answers it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedkd.journal import SUMMARY, Run, listed, part, real, round_bytes
from fedkd.records import RoundReport
from fedkd.report import charts
from fedkd.report.charts import Band, Line, swatch
from fedkd.report.clients import average, bins
from fedkd.report.page import ROWS, UNKNOWN, DataTable, Panel, data_table, line_legend, panel, thinned
from fedkd.units import gap, percent, plain, seconds, short, size, three, whole

CLASSES = 20  # of the confusion matrix; beyond that, the classes with the fewest mistakes are gathered
FEW = 5  # samples below which a bin of a reliability curve is noise
BINS = 50  # of a reliability curve
PHASES = ("clients", "aggregate", "distill", "evaluate")
STUDENT_AND_TEACHER = (("student", 1, 0), ("teacher", 2, 1))  # name, color, dash


def accuracy(run: Run) -> Panel:
    """Accuracy of the student, the ensemble and the clients' own models over rounds."""
    low, high = run.series("local_worst"), run.series("local_best")
    band = [(x, a, b) for (x, a), (_, b) in zip(low, high, strict=True)]
    lines = _accuracy_lines(run, [float(r.round) for r in run.rounds])
    svg = charts.line_chart(
        lines,
        title="Test accuracy over rounds",
        x_label="round",
        y_label="accuracy",
        x_format=whole,
        y_limits=(0.0, 1.0),
        whole_x=True,
        band=Band(thinned(band), 3) if lines and len(run.clients) > 1 else None,
    )
    student, mean = run.last("student"), run.last("local_mean")
    answer, asks = UNKNOWN, "Is the student better than what clients have alone?"
    if not run.alone:
        asks = "Is the student better than the clients' own models, which have learned from what came back?"
    if run.config.get("student") == "none":
        asks = "How good are the clients' own models?"
        if mean is not None:
            answer = f"After round {run.rounds[-1].round} they answer {percent(mean)} correctly on average."
    elif student is not None and mean is not None:
        answer = f"After round {run.rounds[-1].round} it is {gap(student - mean)} {average(run)}."
    elif student is not None:
        answer = f"It reaches {percent(student)}; the clients' own accuracy is not known."
    names = ["student", "ensemble", "local_mean", "local_best", "local_worst", "coverage"]
    head = ["round", "student", "ensemble", "local mean", "local best", "local worst", "coverage"]
    rows = [[str(r.round), *(percent(real(r.metrics.get(name))) for name in names)] for r in run.rounds]
    items = line_legend(lines)
    if len(run.clients) > 1 and any(a is not None and b is not None for _, a, b in band):
        items.append((swatch("band", 3), "worst to best client"))
    return panel("accuracy", "Accuracy over rounds", f"{asks} {answer}", svg, items, data_table(head, rows))


def accuracy_by_bytes(run: Run) -> Panel:
    """Accuracy over the bytes of all clients, with one round of FedAvg for scale."""
    moved = run.traffic()
    lines = _accuracy_lines(run, moved)[:2]
    possible, why, cost = run.fedavg
    round_of_fedavg = 2 * (cost or 0.0) * len(run.clients)  # weights go down and up again
    mark = (round_of_fedavg, f"one FedAvg round: {size(round_of_fedavg)}") if possible and round_of_fedavg > 0 else None
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
    return panel("bytes", "Accuracy over bytes", caption, svg, line_legend(lines), data_table(head, rows))


def _accuracy_lines(run: Run, xs: Sequence[float]) -> list[Line]:
    lines = []
    for name, metric, color, dash in (
        ("student", "student", 1, 0),
        ("ensemble, on the transfer set", "ensemble", 2, 1),
        (average(run).removeprefix("the "), "local_mean", 3, 0),
    ):
        values = [y for _, y in run.series(metric)]
        if any(y is not None for y in values):
            lines.append(Line(name, thinned(list(zip(xs, values, strict=True))), color, dash))
    return lines


def phases(run: Run) -> Panel:
    """Seconds of each phase of a round."""
    found = {str(key) for r in run.rounds for key, value in r.seconds.items() if real(value) is not None}
    shown = [p for p in PHASES if p in found] + sorted(found - set(PHASES))[: charts.COLORS - len(PHASES)]
    groups, names, shared = bins(run)

    def mean(group: Sequence[RoundReport], phase: str) -> float:
        return sum(max(0.0, real(r.seconds.get(phase)) or 0.0) for r in group) / len(group)

    svg = charts.stacked_chart(
        [(name, [mean(group, p) for p in shown]) for name, group in zip(names, groups, strict=True)],
        [short(p, 24) for p in shown],
        title="Seconds by phase and round",
        x_label="round",
        y_label="time",
    )
    totals = {p: sum(real(r.seconds.get(p)) or 0.0 for r in run.rounds) for p in shown}
    total = sum(totals.values())
    answer = UNKNOWN
    if total > 0:
        longest = max(totals, key=lambda p: totals[p])
        answer = (
            f"{seconds(total)} in all, {percent(totals[longest] / total)} of it in the phase {short(longest, 24)!r}."
        )
        if shared:
            answer += f"{shared} and shows their mean."
    rows = [[str(r.round), *(seconds(real(r.seconds.get(p))) for p in shown)] for r in run.rounds] if shown else []
    items = [
        (swatch("box", i % charts.COLORS + 1), f"{short(p, 24)}, {seconds(totals[p])}") for i, p in enumerate(shown)
    ]
    data = data_table(["round", *(short(p, 24) for p in shown)], rows)
    return panel("seconds", "Where the time went", f"Which phase takes the time? {answer}", svg, items, data)


def reliability(run: Run) -> Panel:
    """Accuracy over confidence of the student and the teacher."""
    given = part(run.summary, "reliability")
    curves, items, asides, rows = [], [], [], []
    for who, color, dash in STUDENT_AND_TEACHER:
        bins = [b for b in listed(given, who) if isinstance(b, dict)]
        triples = [tuple(real(b.get(key)) for key in ("confidence", "accuracy", "count")) for b in bins]
        known = [(c, a, n) for c, a, n in triples if c is not None and a is not None and n and n > 0][:BINS]
        ece = run.last(f"{who}_ece")
        if known:
            curves.append((who, [one for one in known if one[2] >= FEW] or known, color))
            items.append((swatch("line", color, dash), who + ("" if ece is None else f", ECE {ece:.3f}")))
            rows += [[who, percent(c), percent(a), f"{n:,.0f}"] for c, a, n in known]
        if ece is not None:
            asides.append(f"the {who} is off by {100 * ece:.1f} points on average")
    svg = charts.reliability_chart(curves, title="Accuracy over confidence")
    answer = f"{asides[0][:1].upper()}{'; '.join(asides)[1:]} (ECE)." if asides else UNKNOWN
    items = items + [(swatch("reference"), "perfectly calibrated")] if items else []
    caption = f"When it says 80% sure, is it right 80% of the time? {answer}"
    caption += f" Larger dots hold more samples; bins of fewer than {FEW} are not drawn." if svg else ""
    data = data_table(["who", "confidence", "accuracy", "samples"], rows)
    return panel("reliability", "Reliability", caption, svg, items, data)


def confusion(run: Run) -> Panel:
    """Truth by answer of the student, and its most frequent mistakes."""
    counts, names = _matrix(run)
    title, question = "Confusion", "What does the student take for what?"
    if not counts:
        return panel("confusion", title, f"{question} {UNKNOWN}", "", [])
    total, hits = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(counts)))
    mistakes = sorted(
        ((counts[i][j], i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j and counts[i][j]),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    answer = "It makes no mistake."
    if mistakes:
        n, i, j = mistakes[0]
        answer = f"Most often {short(names[j], 30)!r} answered where {short(names[i], 30)!r} is true ({n:g} times)."
    gathered, labels, cut = _gathered(counts, names)
    svg = charts.confusion_chart(gathered, labels, title="Truth by answer of the student")
    rows = [
        [short(names[i], 40), short(names[j], 40), f"{n:g}", percent(n / sum(counts[i]))] for n, i, j in mistakes[:20]
    ]
    top = data_table(["truth", "answer", "times", "of that class"], rows, title="The most frequent mistakes")
    full = data_table(
        ["truth \\ answer", *(short(label, 16) for label in labels)],
        [[short(label, 16), *(f"{n:g}" for n in row)] for label, row in zip(labels, gathered, strict=True)],
    )
    items = [(swatch("box", 1), "right"), (swatch("box", 2), "wrong")]
    share = f" {percent(hits / total)} of {total:,g} answers are right." if total else ""
    caption = f"{question} {answer}{share} Stronger color: larger share of the true class.{cut}"
    return panel("confusion", title, caption, svg, items, top, full)


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


def loss(run: Run) -> Panel:
    """Loss over rounds. Accuracy only counts who is right; the loss also asks how much was bet on it."""
    lines = [
        Line(who, thinned(run.series(f"{who}_nll")), color, dash)
        for who, color, dash in STUDENT_AND_TEACHER
        if run.last(f"{who}_nll") is not None
    ]
    svg = _nats_chart(lines, "Negative log-likelihood over rounds", "negative log-likelihood, in nats")
    student, teacher = run.last("student_nll"), run.last("teacher_nll")
    answer = UNKNOWN
    if student is not None:
        answer = f"The student's loss is {student:.2f}" + (
            "." if teacher is None else f", the teacher's {teacher:.2f}."
        )
        answer += " Lower is better; sure and wrong costs most."
    head = ["round", "student NLL", "student ECE", "teacher NLL", "teacher ECE"]
    names = ["student_nll", "student_ece", "teacher_nll", "teacher_ece"]
    rows = [[str(r.round), *(three(real(r.metrics.get(name))) for name in names)] for r in run.rounds]
    caption = f"Does it put its bets on the right answer? {answer}"
    return panel("loss", "Loss over rounds", caption, svg, line_legend(lines), data_table(head, rows))


def entropy(run: Run) -> Panel:
    """Mean entropy of the teacher over rounds."""
    line = run.series("teacher_entropy")
    known = [(x, y) for x, y in line if y is not None]
    drawn = [Line("teacher", thinned(line), 2, 0)]
    svg = _nats_chart(drawn, "Entropy of the teacher over rounds", "mean entropy of the teacher, in nats")
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
        [str(r.round), three(y), percent(real(r.metrics.get("coverage")))]
        for r, (_, y) in zip(run.rounds, line, strict=True)
    ]
    data = data_table(["round", "entropy (nats)", "coverage"], rows)
    return panel("entropy", "How sure the teacher is", f"Do the clients come to one answer? {answer}", svg, [], data)


def _nats_chart(lines: Sequence[Line], title: str, y_label: str) -> str:
    return charts.line_chart(
        lines,
        title=title,
        x_label="round",
        y_label=y_label,
        x_format=whole,
        y_format=lambda y: f"{y:.2f}",
        y_limits=(0.0, math.inf),
        y_span=0.2,
        whole_x=True,
    )


def released(run: Run) -> Panel:
    """What left each device, in what form, how large and to whom."""
    items = [row for row in listed(run.summary, "released") if isinstance(row, dict)]
    rows = [
        [
            *(short(plain(row.get(key)), 120) for key in ("what", "form")),
            "a few" if row.get("bytes") is None else size(real(row.get("bytes"))),
            short(plain(row.get("to")), 40),
        ]
        for row in items[:ROWS]
    ]
    note = f"{len(items) - ROWS} more entries are in {SUMMARY}." if len(items) > ROWS else ""
    shown = (
        DataTable(
            "What left each device, per round",
            ["what", "form", "bytes a round", "to"],
            rows,
            note,
            frozenset({0, 1, 3}),
        )
        if rows
        else None
    )
    totals = {
        key: [sum(real(part(r.clients, key).get(f"bytes_{way}")) or 0.0 for r in run.rounds) for way in ("up", "down")]
        for key in run.clients
    }
    each = [[short(run.called(key), 40), size(up), size(down)] for key, (up, down) in totals.items()]
    caption = "What exactly left each device, per round?"
    caption += " No message has a field for inputs, labels, weights or gradients." if rows else ""
    data = data_table(["client", "sent in all", "received in all"], each, title="Bytes by client", what="clients")
    return Panel("released", "What left each device", caption, shown=shown, tables=[data])
