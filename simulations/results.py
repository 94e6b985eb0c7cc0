"""RESULTS.md from the result files of all benchmarks: one section a file, whatever is in it.

Run: python -m simulations.results
"""

from __future__ import annotations

import ast
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.benchmarks.bench import RESULTS
from simulations.summaries import SUMMARIES

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "RESULTS.md"
HEAD = """# Results

Every number here was measured by a command that is named with it, and is in `simulations/benchmarks/results/`.
± is the standard deviation over repeats, seeds where seeds are given. This file is written by
`python -m simulations.results`; do not edit it.
"""
LISTED = 12  # values of a list that are written out
MOMENTS = (1, 5)  # rounds that are shown of a series, beside the last one


def markdown(folder: Path = RESULTS) -> str:
    """Return the text of RESULTS.md for the result files in ``folder``."""
    files = sorted(folder.glob("*.json"))
    return "\n".join([HEAD, *(section(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files)])


def section(name: str, result: Mapping[str, Any]) -> str:
    """Return the section of one file: what it is about, who measured it where, and its tables."""
    intro = sentence(name)
    lines = [f"## {words(name)}", "", *([intro, ""] if intro else []), *_about(result.get("about", {}))]
    picture = RESULTS / f"{name}.svg"
    if picture.exists():
        lines += [f"![{words(name)}]({picture.relative_to(ROOT)})", ""]
    told = {key: value for key, value in result.items() if key != "about"}
    if name in SUMMARIES and told:
        settings = [f"- {words(key)}: {said}" for key, value in told.items() if (said := _settings(value)) is not None]
        lines += [*settings, ""] if settings else []
        for about, head, rows in SUMMARIES[name](result):
            lines += [f"{about[:1].upper()}{about[1:]}.", "", *_table(head, rows)]
        return "\n".join(lines)
    return "\n".join([*lines, *_blocks(told, 3)])


def sentence(name: str) -> str:
    """Return the first line of the docstring of the module that made ``name``, if it is one of ours."""
    for folder in ("benchmarks", "papers"):
        module = ROOT / "simulations" / folder / f"{name}.py"
        if module.exists():
            told = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            return told.partition("\n\n")[0].replace("\n", " ").replace("``", "`").partition(" Run: ")[0]
    return ""


def words(key: str) -> str:
    """Return a key as a heading: ``seconds_per_round`` as ``Seconds per round``."""
    text = spaced(key)
    return text[:1].upper() + text[1:]


def spaced(key: str) -> str:
    """Return a key as words: ``local_mean`` as ``local mean``."""
    return str(key).replace("_", " ").strip()


def cell(value: Any) -> str | None:
    """Return what fits a cell of a table, None for what does not: tables, lists of them, long lists of lists.

    >>> cell({"mean": 0.9445, "sd": 0.0154, "values": [0.93, 0.96]})
    '0.9445 ± 0.0154'
    """
    if isinstance(value, Mapping):
        if not is_spread(value):
            return None
        return number(value["mean"]) + (f" ± {number(value['sd'])}" if value["sd"] is not None else "")
    if isinstance(value, list):
        if not all(isinstance(one, int | float | str | None) for one in value):
            return None
        shown = value if len(value) <= LISTED else [*value[: LISTED // 2], "...", *value[-LISTED // 2 :]]
        return ", ".join(number(one) for one in shown)
    return number(value)


def number(value: Any) -> str:
    """Return a number with at most four digits that count, anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return " ".join(str(value).split())


def is_spread(value: Any) -> bool:
    """Return whether ``value`` is what :func:`simulations.benchmarks.bench.spread` makes."""
    return isinstance(value, Mapping) and {"mean", "sd", "values"} <= value.keys()


def over_seeds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one record for all that differ in nothing but ``seed`` and what was measured.

    What was measured are fractions, and lists of numbers: series over rounds, of which some rounds are kept.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        flat = _flat(record)
        same = {k: v for k, v in flat.items() if k != "seed" and not isinstance(v, float | None)}
        groups.setdefault(json.dumps(same), []).append(flat)
    return [_merged(json.loads(same), group) for same, group in groups.items()]


def _merged(same: dict[str, Any], group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {**same, "seeds": len(group)}
    for key in dict.fromkeys(key for record in group for key in record if key not in (*same, "seed")):
        values = [record[key] for record in group if record.get(key) is not None]
        sd = statistics.stdev(values) if len(values) > 1 else None
        merged[key] = {"mean": statistics.mean(values), "sd": sd, "values": values} if values else None
    return merged


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with a column for each shown round of a series."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, list) and value and all(isinstance(one, int | float | None) for one in value):
            rounds = [*(m for m in MOMENTS if m < len(value)), len(value)]
            flat |= {f"{key}, round {r}": None if value[r - 1] is None else float(value[r - 1]) for r in rounds}
        else:
            flat[key] = value
    return flat


def _about(about: Mapping[str, Any]) -> list[str]:
    if not about:
        return []
    told = {key: value for key, value in about.items() if key not in ("command", "machine", "commit")}
    versions = ", ".join(f"{key} {value}" for key, value in told.items())
    parts = [f"`{about['command']}`"] if "command" in about else []
    parts += [str(about["machine"])] if "machine" in about else []
    parts += [versions] if versions else []
    parts += [f"commit {about['commit']}"] if "commit" in about else []
    return [" · ".join(parts), ""]


def _blocks(table: Mapping[str, Any], level: int) -> list[str]:
    """Return facts of one cell as a list, then each table under its own heading."""
    facts = {key: said for key, value in table.items() if (said := cell(value) or _settings(value)) is not None}
    lines = [f"- {words(key)}: {said}" for key, said in facts.items()]
    lines += [""] if facts else []
    for key, value in table.items():
        if key not in facts:
            lines += [f"{'#' * min(level, 6)} {words(key)}", "", *_block(value, level + 1)]
    return lines


def _block(value: Any, level: int) -> list[str]:
    """Return one table as Markdown if it is one, else its parts one by one."""
    if isinstance(value, list) and value:
        if all(isinstance(one, Mapping) for one in value):
            records = over_seeds(value) if any("seed" in one for one in value) else list(value)
            return _records([""] * len(records), records)
        return [f"- {json.dumps(one, ensure_ascii=False)}" for one in value] + [""]
    if not value:
        return ["None.", ""]
    if all(cell(one) is not None for one in value.values()):
        spreads = any(is_spread(one) for one in value.values())
        rows = [[str(key), str(cell(one))] for key, one in value.items()]
        return _table(["", "mean ± sd" if spreads else ""], rows)
    if value and all(_is_record(one) for one in value.values()):
        return _records(list(value), list(value.values()))
    return _blocks(value, level)


def _settings(value: Any) -> str | None:
    """Return a table that holds words beside numbers on one line: that is what was set, not what was measured."""
    if not _is_record(value) or not any(isinstance(one, str) for one in value.values()):
        return None
    return ", ".join(f"{key} = {cell(one)}" for key, one in value.items())


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) and not is_spread(value) and all(cell(v) is not None for v in value.values())


def _records(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [
        [name, *(("" if key not in record else cell(record[key]) or json.dumps(record[key])) for key in columns)]
        for name, record in zip(names, records, strict=True)
    ]
    head = ["", *map(spaced, columns)]
    if not any(names):
        head, rows = head[1:], [row[1:] for row in rows]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[text.replace("|", "\\|") for text in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in safe]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def main() -> None:
    """Write RESULTS.md."""
    TARGET.write_text(markdown(), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
