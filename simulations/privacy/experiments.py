"""Experiments on the cost of privacy: one TOML file each, beside this one, which ``fedkd sweep FILE`` runs as well.

Here the runs are made in this process, without the half minute of imports that each run of a sweep has. Accuracy on the
bundled digits over the seeds of the file; the noise comes from the operating system, so numbers differ a little each
time. Where one setting is a number, a picture is drawn over it.
Run: python -m simulations.privacy.experiments [epsilon clients transfer rounds clip sampling votes dropout]
(about 15 minutes on 2 cores for all)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fedkd.config import Config
from fedkd.report.charts import Line, line_chart
from fedkd.report.page import picture
from fedkd.sweep import Sweep, read_sweep
from fedkd.units import percent
from simulations.benchmarks.bench import RESULTS, save, spread
from simulations.scene import run

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
MEASURED = {"student": "student", "teacher": "ensemble"}


def question(name: str) -> str:
    """Return what an experiment asks: the first line of its file."""
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def once(config: Config) -> dict[str, float]:
    """Return what one run comes to."""
    last = run(config.model_copy(update={"pooled": False, "output": ""}))[-1].metrics
    return {name: float(last[key] or 0.0) for name, key in MEASURED.items()}


def over(sweep: Sweep) -> str:
    """Return the setting whose numbers a picture is drawn over: the one that takes most of them, or nothing."""
    taken: dict[str, set[float]] = {}
    for settings in sweep.variants.values():
        for key, value in settings.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                taken.setdefault(key, set()).add(value)
    many = {key: len(values) for key, values in taken.items() if len(values) > 1}
    return max(many, key=many.__getitem__, default="")


def drawn(name: str, sweep: Sweep, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the picture of an experiment as SVG: the student over one setting, a line for all others together."""
    key = over(sweep)
    points: dict[str, list[tuple[float, float | None]]] = {}
    for variant in sweep.variants:
        number = getattr(sweep.of(variant)[0].config, key)
        rest = ", ".join(part for part in variant.split(", ") if part.partition("=")[0] != key)
        points.setdefault(rest or name, []).append((float(number), found[variant]["student"]["mean"]))
    lines = [Line(rest, sorted(ps), i % 8 + 1, i // 8) for i, (rest, ps) in enumerate(points.items())]
    chart = line_chart(
        lines,
        title=question(name),
        x_label=key.replace("_", " "),
        y_label="student",
        y_format=percent,
        x_format=_plain,
        keyed=True,
    )
    return picture(chart)


def _plain(value: float) -> str:
    return f"{value:g}"


def main() -> None:
    """Run the experiments that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m simulations.privacy.experiments")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help=", ".join(NAMES))
    for name in parser.parse_args().names or NAMES:
        sweep = read_sweep(FOLDER / f"{name}.toml")
        with ProcessPoolExecutor(2) as pool:
            runs = dict(zip(sweep.jobs, pool.map(once, [job.config for job in sweep.jobs]), strict=True))
        found = {
            variant: {kind: spread([runs[job][kind] for job in sweep.of(variant)]) for kind in MEASURED}
            for variant in sweep.variants
        }
        seeds = len({job.config.seed for job in sweep.jobs})
        save(
            f"privacy_{name}",
            {"question": question(name), "seeds": seeds, "accuracy": found},
            module="simulations.privacy.experiments",
        )
        if over(sweep):
            (RESULTS / f"privacy_{name}.svg").write_text(drawn(name, sweep, found), encoding="utf-8")


if __name__ == "__main__":
    main()
