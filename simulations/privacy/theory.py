"""What an attacker can prove of each mechanism, over what theory allows him: the audits of ``fedkd audit mechanism``.

Every mechanism is set to epsilon 0.5 to 8 and run many times on two neighbors that it finds hardest to hide. From what
comes out, epsilon is bounded from below at 99 %: by the Gaussian bound where the noise is normal, which comes close to
the truth, and by the one that holds for any mechanism, which does not. Beside each stands the same mechanism with noise
that is sqrt 2 too small: an audit that sees anything finds more there than was promised.

Run: python -m simulations.privacy.theory [--trials 4000]
(5 minutes of one core; a bound above its epsilon would be an error of ours in 99 of 100 cases)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fedkd.audits.releases import PLANTED
from fedkd.events import Gaussian
from fedkd.privacy import neighbors
from fedkd.privacy.audit import Audit, audit_mechanism, epsilon_bound
from fedkd.privacy.calibrate import noise_multiplier
from fedkd.privacy.noise import SystemEntropy
from fedkd.report.charts import Line, line_chart
from fedkd.report.page import picture
from simulations.benchmarks.bench import RESULTS, save

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
DELTA = 1e-5
GAUSSIAN: dict[str, Callable[[float], neighbors.Statistic]] = {
    "central, clip 0.25": lambda noise: neighbors.mean(noise, clip=0.25),
    "central, weighted": lambda noise: neighbors.weights(noise, power=0.25, balance=0.1),
    "distributed": lambda noise: neighbors.shares(noise, clip=0.25),
    "gnmax": neighbors.votes,
    "expertise sketch": neighbors.sketch,
    "local_gaussian": neighbors.labels,
}


def gaussian(mechanism: str, epsilon: float, trials: int, *, smaller: float = 1.0) -> Audit:
    """Audit a mechanism whose noise is set to ``epsilon``, or made ``smaller`` than that."""
    noise = noise_multiplier(epsilon, DELTA, lambda noise: [Gaussian(noise)])
    release = GAUSSIAN[mechanism](noise / smaller)
    return audit_mechanism(release, epsilon, DELTA, trials=trials, entropy=SystemEntropy())


def answers(epsilon: float, trials: int, *, smaller: float = 1.0) -> Audit:
    """Audit one randomized answer, whose epsilon is pure."""
    release = neighbors.answers(epsilon * smaller)
    return audit_mechanism(release, epsilon, 0.0, trials=trials, gaussian=False, entropy=SystemEntropy())


def row(right: Audit, planted: Audit) -> dict[str, float]:
    """Return what was proved of one mechanism at one epsilon."""
    any_ = epsilon_bound(right.counts, delta=right.delta, confidence=right.confidence)
    found = {"promised": right.claimed, "proved": right.lower, "proved of any mechanism": any_}
    return {name: round(value, 3) for name, value in {**found, "proved with too little noise": planted.lower}.items()}


def measured(trials: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return mechanism -> epsilon -> what was proved."""
    table = {
        name: {f"{e:g}": row(gaussian(name, e, trials), gaussian(name, e, trials, smaller=PLANTED)) for e in EPSILONS}
        for name in GAUSSIAN
    }
    local = {f"{e:g}": row(answers(e, trials), answers(e, trials, smaller=PLANTED)) for e in EPSILONS}
    return {**table, "local, one answer": local}


def drawn(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return proved over promised epsilon as SVG, a line a mechanism, and the line that none may cross."""
    lines = [Line("promised", [(e, e) for e in EPSILONS], 1, 2)]
    for i, (name, rows) in enumerate(table.items()):
        lines.append(Line(name, [(found["promised"], found["proved"]) for found in rows.values()], i % 7 + 2, 0))
    chart = line_chart(
        lines,
        title="What is proved of each mechanism, over what it promises",
        x_label="epsilon promised",
        y_label="epsilon proved, at 99 %",
        x_format=lambda value: f"{value:g}",
        y_format=lambda value: f"{value:g}",
        keyed=True,
    )
    return picture(chart)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, draw and save; return the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args(arguments).trials
    table = measured(trials)
    broken = [f"{name} at {e}" for name, rows in table.items() for e, r in rows.items() if r["proved"] > r["promised"]]
    blind = [
        f"{name} at {e}"
        for name, rows in table.items()
        for e, r in rows.items()
        if r["proved with too little noise"] <= r["promised"]
    ]
    found = {"trials": trials, "delta": DELTA, "broken promises": broken, "blind to too little noise": blind}
    save("privacy_theory", {**found, "epsilon": table}, module="simulations.privacy.theory")
    (RESULTS / "privacy_theory.svg").write_text(drawn(table), encoding="utf-8")
    return {**found, "epsilon": table}


if __name__ == "__main__":
    main()
