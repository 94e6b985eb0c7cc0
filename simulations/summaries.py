"""What a reader wants of result files that are too deep for tables of their own: rows, columns, a number each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedkd.report.charts import Line, line_chart
from fedkd.report.page import picture
from fedkd.units import percent, size

Table = tuple[str, list[str], list[list[str]]]
"""What it is about, the head, and the rows."""

SHOWN = (1, 5, 20)
SPLITS = {"dirichlet": "Dirichlet 0.1", "one_class": "1 class", "two_classes": "2 classes", "iid": "IID"}


def expertise(result: Mapping[str, Any]) -> list[Table]:
    """Return a table for each data set: ways to weight ballots by how the data is dealt, the teacher's accuracy."""
    tables = []
    for data, deals in result["tables"].items():
        members = dict.fromkeys(member for deal in deals.values() for member in deal["teacher"])
        rows = [
            [member, *(points(deal["teacher"].get(member, {}).get("accuracy")) for deal in deals.values())]
            for member in members
        ]
        seeds = sorted({deal["seeds"] for deal in deals.values()})
        about = (
            f"{data.removeprefix('parquet:').replace('_', ' ')}: accuracy of the teacher in percent, "
            f"± over {' or '.join(map(str, seeds))} seeds"
        )
        tables.append((about, ["", *deals], rows))
    return tables


def attacks(result: Mapping[str, Any]) -> list[Table]:
    """Return one table: rules by how the data is dealt, accuracy without liars and points lost at worst."""
    deals = result["tables"]
    head = ["", *(f"{deal}, {what}" for deal in deals for what in ("no liars", "20 %", "40 %"))]
    rules = dict.fromkeys(rule for deal in deals.values() for rule in deal)
    rows = [[rule, *(text for deal in deals.values() for text in _losses(deal.get(rule)))] for rule in rules]
    about = "accuracy in percent while nobody lies, ± over seeds, then points lost under the worst of ten attacks"
    return [(about, head, rows)]


def _losses(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["–"] * 3
    worst = [found[f"worst loss, {share}"] for share in ("20%", "40%")]
    return [points(found["nobody lies"]), *(f"{w['points']:.1f} ({_attack(w['attack'])})" for w in worst)]


def _attack(name: str) -> str:
    return name.rpartition(",")[0].replace("claiming to know everything", "boasting")


def methods(result: Mapping[str, Any]) -> list[Table]:
    """Return a table for each number of rounds: methods by how the data is dealt, the student after some."""
    tables = []
    for rounds in sorted({run["rounds"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["rounds"] == rounds]
        shown = [r for r in SHOWN if r <= rounds]
        rows = []
        for split, method in dict.fromkeys((run["split"], run["method"]) for run in runs):
            group = [run for run in runs if (run["split"], run["method"]) == (split, method)]
            after = [points(_spread([run["student"][r - 1] for run in group])) for r in shown]
            sent = [size(statistics.mean(sum(run[way]) for run in group)) for way in ("up", "down")]
            rows.append([SPLITS.get(split, split), method, str(len(group)), *after, *sent])
        head = ["data", "method", "seeds", *(f"student after {r}" for r in shown), "sent up", "sent down"]
        about = f"{rounds} round{'s' if rounds > 1 else ''}: student in percent; what a client sends and gets, in all"
        tables.append((about, head, rows))
    return tables


def load(result: Mapping[str, Any]) -> list[Table]:
    """Return one table: everything that was measured, a column for each number of nodes."""
    nodes = {name: flat(found) for name, found in result["nodes"].items()}
    keys = dict.fromkeys(key for found in nodes.values() for key in found)
    rows = [[key, *(_plain(found.get(key)) for found in nodes.values())] for key in keys]
    return [("a column for each number of nodes, and where the SuperLink keeps its state", ["", *nodes], rows)]


SUMMARIES: dict[str, Callable[[Mapping[str, Any]], list[Table]]] = {
    "expertise": expertise,
    "attacks": attacks,
    "methods": methods,
    "load": load,
}


def frontier(runs: Sequence[Mapping[str, Any]], *, split: str, rounds: int) -> str:
    """Return a picture (SVG) of accuracy over the bytes that a client has sent so far, a line for each method."""
    group = [run for run in runs if (run["split"], run["rounds"]) == (split, rounds)]
    lines = []
    for i, method in enumerate(dict.fromkeys(run["method"] for run in group)):
        mine = [run for run in group if run["method"] == method]
        lines.append(Line(method, [_so_far(mine, r) for r in range(rounds)], i % 8 + 1, i // 8))
    if not lines:
        return ""
    chart = line_chart(
        lines,
        title=f"{SPLITS.get(split, split)}: accuracy of the student by what a client has sent",
        x_label="sent by a client so far",
        y_label="student",
        x_format=size,
        y_format=percent,
        log_x=True,
        keyed=True,
    )
    return picture(chart)


def _so_far(runs: Sequence[Mapping[str, Any]], r: int) -> tuple[float, float]:
    sent, found = ([sum(run["up"][: r + 1]) for run in runs], [run["student"][r] for run in runs])
    return statistics.mean(sent), statistics.mean(found)


def points(spread: Mapping[str, Any] | None) -> str:
    """Return a share as percent with its spread."""
    if not spread:
        return "–"
    return f"{100 * spread['mean']:.1f}" + ("" if spread.get("sd") is None else f" ± {100 * spread['sd']:.1f}")


def flat(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested tables as one, whose keys are the ways to what is in them."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        name = f"{before}, {key}" if before else str(key)
        out |= flat(value, name) if isinstance(value, Mapping) else {name.replace("_", " "): value}
    return out


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
