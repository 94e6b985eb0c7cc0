"""The panels of a report that have a row for each client."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low

from fedkd.journal import Run, listed, part, real
from fedkd.records import RoundReport
from fedkd.report import charts
from fedkd.report.charts import Pair, swatch
from fedkd.report.page import UNKNOWN, Panel, data_table, panel
from fedkd.units import percent, points, seconds, short, three

CLIENTS = 30  # rows of a chart over clients
COLUMNS = 25  # columns of a chart over rounds; beyond that, neighboring rounds share one
CLASSES = 20  # columns of a chart over classes
SHARES = [(i + 1) / charts.LEVELS for i in range(charts.LEVELS)]


def average(run: Run) -> str:
    """Return whom a student is compared with: the clients are alone only until something has come back to them."""
    who = "the only client" if len(run.clients) == 1 else "the average client"
    return f"{who} alone" if run.alone else f"{who}'s own model"


def gain(run: Run) -> Panel:
    """Accuracy of each client's own model, before and after where there are several rounds."""
    once = len(run.rounds) == 1  # first and last are one: nothing could change
    stated = part(run.summary, "clients")
    pairs: dict[str, tuple[float | None, float | None]] = {}
    for key in run.clients:
        told = [v for r in run.rounds if (v := real(part(r.clients, key).get("local"))) is not None]
        row = part(stated, key)
        before, after = real(row.get("before")), real(row.get("after"))
        if told:
            before, after = told[0] if before is None else before, told[-1] if after is None else after
        pairs[key] = None if once else before, after
    known = keys = [key for key in run.clients if pairs[key] != (None, None)]
    gains = {key: after - before for key, (before, after) in pairs.items() if before is not None and after is not None}
    cut = ""
    if len(known) > CLIENTS:
        ranked = sorted(known, key=lambda key: (pairs[key][1] or 0.0) if once else gains.get(key, 0.0))
        half = CLIENTS // 2
        keys = ranked[:half] + ranked[-half:]
        least, most = ("of lowest", "of highest accuracy") if once else ("that gained least", "that gained most")
        cut = f" Drawn: the {half} clients {least} and the {half} {most}, of {len(known)}."
    student = real(run.scoreboard.get("student"))
    svg = charts.dumbbell_chart(
        [Pair(_client_name(run, key), *pairs[key]) for key in keys],
        title="Accuracy of each client" + ("" if once else " before and after"),
        x_label="test accuracy of the client's own model",
        reference=None if student is None else (student, f"student {percent(student)}"),
    )
    answer = f"{sum(g > 0 for g in gains.values())} of {len(gains)} own models got better." if gains else UNKNOWN
    if len(run.clients) == 1 and gains:
        answer = f"Its own model has changed by {points(*gains.values())} points since the first round."
    if once and known:
        answer = "After one round nothing has come back to the clients yet."
    if known and len(run.clients) > 1 and student is not None:
        beaten = sum(after is not None and after < student for _, after in pairs.values())
        answer += f" The student beats the own model of {beaten} of {len(known)}."
    answer += cut
    rows = [
        [
            short(run.called(key), 40),
            short(str(part(stated, key).get("architecture") or "not known"), 60),
            percent(pairs[key][0]),
            percent(pairs[key][1]),
            points(gains.get(key)),
        ]
        for key in run.clients
    ]
    head = ["client", "architecture", "first round", "last round", "points"]
    items = [(swatch("ring", 3), "alone, first round"), (swatch("dot", 1), "after the last round")]
    if once:
        rows = [[*row[:2], row[3]] for row in rows]
        head, items = ["client", "architecture", "accuracy"], [(swatch("dot", 1), "alone")]
    asks = "How good is every client alone?" if once else "Who gains from taking part?"
    data = [data_table(head, rows, what="clients")] if known else []  # dashes alone are no table
    title = "Every client" + ("" if once else ", before and after")
    return panel("clients", title, f"{asks} {answer}", svg, items, *data)


def held(run: Run) -> Panel | None:
    """Which classes each client holds; None where nobody but the client knows it, as in a deployment."""
    stated = part(part(run.summary, "data"), "held")
    counts = {str(key): [real(n) or 0.0 for n in row] for key, row in stated.items() if isinstance(row, list)}
    keys, classes = [key for key in counts if any(counts[key])], max(map(len, counts.values()), default=0)
    if not keys or classes < 1:
        return None
    shown = keys[:CLIENTS]
    columns = min(classes, CLASSES)
    names = [str(name) for name in listed(part(run.summary, "data"), "class_names")]
    names = names if len(names) == classes else [str(i) for i in range(classes)]
    rows = [counts[key] + [0.0] * (classes - len(counts[key])) for key in shown]
    most = max(max(row) for row in rows)

    def cell(n: float) -> str | None:
        return f"level-{max(1, math.ceil(charts.LEVELS * n / most))}" if n > 0 and most > 0 else None

    svg = charts.grid_chart(
        [[cell(n) for n in row[:columns]] for row in rows],
        title="Classes that each client holds",
        rows=[_client_name(run, key) for key in shown],
        columns=[short(name, 4) for name in names[:columns]],
        x_label="class",
        y_label="client",
    )
    each = sorted(sum(n > 0 for n in row) for row in rows)
    answer = (
        f"A client holds {each[0]} to {each[-1]} of {classes} classes."
        if each[0] < each[-1]
        else f"{'Each' if len(keys) > 1 else 'The only'} client holds {each[0]} of {classes} classes."
    )
    cut = f" Drawn: the first {len(shown)} clients of {len(keys)}." if len(keys) > len(shown) else ""
    cut += f" Drawn: the first {columns} classes." if classes > columns else ""
    table = [
        [short(run.called(key), 40), *(f"{n:g}" for n in row[:columns]), f"{sum(row):g}"]
        for key, row in zip(shown, rows, strict=True)
    ]
    data = data_table(["client", *(short(name, 16) for name in names[:columns]), "all"], table, what="clients")
    items = [
        (swatch("level", f"level-{i + 1}"), f"up to {most * (i + 1) / charts.LEVELS:.0f}") for i in range(charts.LEVELS)
    ]
    asks = "How unlike are the clients' data?" if len(keys) > 1 else "What is there to learn from?"
    caption = f"{asks} {answer} An empty cell: none of that class.{cut}"
    return panel("held", "What each client holds", caption, svg, items, data)


def outliers(run: Run) -> Panel | None:
    """How far each client's ballots were from the teacher, round by round; None where nobody noted it."""
    shared = bins(run)[2]
    known = {key: [real(part(r.clients, key).get("outlier")) for r in run.rounds] for key in run.clients}
    every = sorted(v for values in known.values() for v in values if v is not None)
    if not every or len(run.clients) == 1:  # whoever is alone cannot stand apart
        return None
    last = {key: next((v for v in reversed(values) if v is not None), None) for key, values in known.items()}
    keys, cut = _fewest(run.clients, {key: v or 0.0 for key, v in last.items()}, "that were farthest at last")
    edges = _steps(every)

    svg = _heat(run, keys, "How far each client is from the teacher", edges, _distances)
    ranked = sorted((key for key in run.clients if last[key] is not None), key=lambda key: -(last[key] or 0.0))
    answer = f"Client {short(run.called(ranked[0]), 20)} is farthest from it at last: {three(last[ranked[0]])}"
    answer += f"; half of them are within {three(median_low(last[key] or 0.0 for key in ranked))}.{cut}"
    if shared:
        answer += f"{shared} and shows the largest distance."
    acts = {key: bool(part(part(run.summary, "clients"), key).get("dishonest")) for key in run.clients}
    if any(acts.values()):
        liars = [key for key in run.clients if acts[key]]
        found = len(set(liars) & set(ranked[: len(liars)]))
        answer += f" Of the {len(liars)} that attack, {found} are among the {len(liars)} farthest."
    trust = {key: [real(part(r.clients, key).get("trust")) for r in run.rounds][-1:] for key in run.clients}
    head = ["client", "first round", "last round", "trust", *(["dishonest"] if any(acts.values()) else [])]
    rows = [
        [
            short(run.called(key), 40),
            three(next((v for v in known[key] if v is not None), None)),
            three(last[key]),
            three(trust[key][0] if trust[key] else None),
            *(["yes" if acts[key] else "no"] if any(acts.values()) else []),
        ]
        for key in run.clients
    ]
    items = [(swatch("level", f"level-{i + 1}"), f"up to {three(edge)}") for i, edge in enumerate(edges)]
    caption = f"Whose ballots stand apart from the teacher? {answer} Mean L2 distance of soft labels, 0 to 1.41."
    return panel("outliers", "Who stands apart", caption, svg, items, data_table(head, rows, what="clients"))


def presence(run: Run) -> Panel:
    """How each client did in each round: answered, late, away, silent or failed."""
    groups, names, shared = bins(run)
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
    asked = sum(status != "away" for statuses in tally.values() for status in statuses)
    answered = sum(statuses.count("answered") for statuses in tally.values())
    answer = f"{answered:,} of {asked:,} answers came in time.{cut}" if asked else UNKNOWN
    errors = [(key, error) for key in run.clients if (error := _last_error(run, key))]
    if errors:
        answer += f" Client {short(run.called(errors[0][0]), 20)} failed: {errors[0][1]}"
        answer += f" ({len(errors) - 1} more clients failed: see the table.)" if len(errors) > 1 else ""
    if shared:
        answer += f"{shared} and shows the worst of them."
    head = ["client", "asked", *charts.STATUSES, "last error"]
    rows = [
        [
            short(run.called(key), 40),
            str(sum(status != "away" for status in tally[key])),
            *(str(tally[key].count(status)) for status in charts.STATUSES),
            _last_error(run, key),
        ]
        for key in run.clients
    ]
    words = {
        "late": "late, of an earlier round",
        "away": "away: its last ballot counts",
        "silent": "silent until the deadline",
    }
    seen = {status for statuses in tally.values() for status in statuses}
    items = [(swatch("status", status), words.get(status, status)) for status in charts.STATUSES if status in seen]
    data = data_table(head, rows, what="clients")
    return panel("presence", "Who was there", f"Who answered, and when? {answer}", svg, items, data)


def latency(run: Run) -> Panel:
    """How long each client took to answer, round by round."""
    shared = bins(run)[2]
    known = {key: _latencies(run.rounds, key) for key in run.clients}
    every = sorted(v for values in known.values() for v in values)
    slowest = {key: max(v, default=0.0) for key, v in known.items()}
    keys, cut = _fewest(run.clients, slowest, "that were slowest once")
    edges = _edges(every)

    svg = _heat(run, keys, "How long each answer took", edges, _latencies)
    answer = UNKNOWN
    if every:
        answer = f"Half of the answers took at most {seconds(median_low(every))}"
        last = max((key for key in run.clients if known[key]), key=lambda key: slowest[key])
        answer += f"; the slowest, of client {short(run.called(last), 20)}, {seconds(every[-1])}.{cut}"
        if shared:
            answer += f"{shared} and shows the slowest answer."
    rows = [
        [short(run.called(key), 40), str(len(v)), *([seconds(median_low(v)), seconds(max(v))] if v else ["–", "–"])]
        for key, v in known.items()
    ]
    items = [(swatch("level", f"level-{i + 1}"), f"up to {seconds(edge)}") for i, edge in enumerate(edges)]
    data = data_table(["client", "answers", "median", "slowest"], rows, what="clients")
    return panel("latency", "How long answers took", f"Whom did the round wait for? {answer}", svg, items, data)


def _heat(
    run: Run,
    keys: Sequence[str],
    title: str,
    edges: Sequence[float],
    of: Callable[[Sequence[RoundReport], str], list[float]],
) -> str:
    """Draw clients by rounds, each cell in the color of the largest number that ``of`` finds in it."""
    groups, names, _ = bins(run)

    def cell(key: str, group: Sequence[RoundReport]) -> str | None:
        found = of(group, key)
        return f"level-{1 + sum(max(found) > edge for edge in edges[:-1])}" if found else None

    return charts.grid_chart(
        [[cell(key, group) for group in groups] for key in keys],
        title=title,
        rows=[_client_name(run, key) for key in keys],
        columns=names,
        x_label="round",
        y_label="client",
    )


def _distances(rounds: Sequence[RoundReport], key: str) -> list[float]:
    return [v for r in rounds if (v := real(part(r.clients, key).get("outlier"))) is not None]


def _latencies(rounds: Sequence[RoundReport], key: str) -> list[float]:
    return [v for r in rounds if (v := real(r.latency.get(key))) is not None and v >= 0]


def _edges(values: Sequence[float]) -> list[float]:
    """Return upper ends of at most five classes of ``values``, in equal ratios where they span a wide range."""
    if not values:
        return []
    low, high = values[0], values[-1]
    if seconds(low) == seconds(high):
        return [high]
    floor = max(low, high / 1e4)
    if high / floor > 8:  # quantiles: one slow first round must not make all others pale
        cuts = [values[math.ceil(step * len(values)) - 1] for step in SHARES]
        return [edge for i, edge in enumerate(cuts) if seconds(edge) not in {seconds(c) for c in cuts[i + 1 :]}]
    return [low + (high - low) * share for share in SHARES]


def _steps(values: Sequence[float]) -> list[float]:
    """Return upper ends of five equal steps up to the largest of ``values``, or one if all are as good as equal."""
    low, high = values[0], values[-1]
    return [high] if three(low) == three(high) else [low + (high - low) * share for share in SHARES]


def bins(run: Run) -> tuple[list[list[RoundReport]], list[str], str]:
    """Return groups of neighboring rounds that share a column, the names of the columns and a note if any is shared."""
    per = math.ceil(len(run.rounds) / COLUMNS)
    groups = [run.rounds[i : i + per] for i in range(0, len(run.rounds), per)]
    names = [str(group[0].round) for group in groups]
    return groups, names, f" Each column covers {per} rounds" if per > 1 else ""


def _fewest(keys: Sequence[str], missed: Mapping[str, float], which: str) -> tuple[list[str], str]:
    """Return the clients to draw, in their order: all, or those with the highest number in ``missed``, and a sentence.

    It says ``which`` only of clients whose number is above 0: where nobody missed anything, nobody missed most.
    """
    if len(keys) <= CLIENTS:
        return list(keys), ""
    chosen = set(sorted(keys, key=lambda key: -missed[key])[:CLIENTS])
    some = sum(missed[key] > 0 for key in chosen)
    who = f"the first {CLIENTS} clients"
    if some:
        others = f" and {CLIENTS - some} more" if some < CLIENTS else ""
        who = f"the {some} client{'s' if some > 1 else ''} {which}{others}"
    return [key for key in keys if key in chosen], f" Drawn: {who}, of {len(keys)}."


def _client_name(run: Run, key: str) -> str:
    if key in run.names:
        return short(run.called(key), 18)
    architecture = str(part(part(run.summary, "clients"), key).get("architecture") or "")
    return f"{short(key, 9)} {architecture.partition('(')[0].strip()}".strip()


def _last_error(run: Run, key: str) -> str:
    found = (part(r.clients, key).get("error") for r in reversed(run.rounds))
    return short(" ".join(str(next((error for error in found if error), "")).split()), 120)
