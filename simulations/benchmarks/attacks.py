"""What liars cost: accuracy of the teacher after ONE round under attacks by 20 % and 40 % of 10 clients, rule by rule.

Fashion-MNIST, 20,000 private and 2,000 transfer images, small CNN, weights by density unless a rule says "uniform". The
clients are trained once a seed (liars that flip labels once more), and all rules get the same ballots. "liars
silenced" is what remains when every liar is known and left out: where a class is held by liars only, no rule can do
better. One round is the hardest case for rules that learn whom to trust.

Run: python -m simulations.benchmarks.attacks [--seeds 5] [--jobs 2] (about 15 minutes on 2 cores; needs Fashion-MNIST)
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from fedkd import metrics
from fedkd.aggregation import aggregator
from fedkd.attack import attack, dishonest
from fedkd.config import Config
from fedkd.defense import vet
from fedkd.random import generator
from fedkd.softlabels import Array
from simulations.benchmarks.bench import save, spread
from simulations.benchmarks.clients import deal

PRIVATE, TRANSFER, CLIENTS = 20_000, 2_000, 10
DEALS = {"IID": "iid", "Dirichlet 0.3": "dirichlet(alpha=0.3)", "Dirichlet 0.1": "dirichlet(alpha=0.1)"}
SHARES = (0.2, 0.4)
ATTACKS: dict[str, dict[str, Any]] = {
    "label_flip": {},
    "label_flip, another class each": {"derange": True},
    "lma": {},
    "cpa": {},
    "hips": {},
    "rank_shuffle": {},
    "random": {},
    "collude": {},
    "lma, claiming to know everything": {"boast": np.inf},
    "collude, claiming to know everything": {"boast": np.inf},
}
DEFENSES = (
    "none",
    "cap",
    "budget",
    "exp_guard",
    "cross_check",
    "drop_outliers",
    "dawid_skene",
    "budget | exp_guard",
    "budget | cross_check",
    "budget | drop_outliers",
    "budget | dawid_skene",
    "budget | cross_check(eta=10)",
)
AGGREGATORS = tuple(name for name in aggregator.names() if name != "mean")
CONFIG = Config(local_epochs=4, batch_size=32, learning_rate=1e-3)


def one_seed(seed: int, spec: str) -> dict[str, dict[str, float]]:
    """Return the accuracy of the teacher: rule to attack with its share to a number in [0, 1]."""
    scene = deal("fashion_mnist", spec, CLIENTS, seed, transfer=TRANSFER, private=PRIVATE)
    truth = scene.truth
    honest = np.stack([scene.ballot(k, CONFIG) for k in range(CLIENTS)])
    w = scene.weights("density", list(honest))
    found = {rule: {"nobody lies": _score(rule, honest, w, truth)} for rule in _rules()}
    found["liars silenced"] = dict(found["defend = none"])
    for what, options in ATTACKS.items():
        for share in SHARES:
            act = attack.build(what.partition(",")[0]).func(share=share, **options)
            liars = dishonest(act, CLIENTS, generator(seed, "attack"))
            p, claimed = honest.copy(), w.copy()
            for k in liars:
                stream = generator(seed, "client", k, "attack")
                if act.labels is not None:
                    y = scene.data.y[scene.shares[k]]
                    p[k] = scene.ballot(k, CONFIG, act.labels(y, scene.data.classes, stream))
                if act.ballot is not None:
                    p[k], claimed[k] = act.ballot(p[k], claimed[k], stream)
            where = f"{what}, {share:.0%}"
            for rule in _rules():
                found[rule][where] = _score(rule, p, claimed, truth)
            silenced = np.where(np.isin(np.arange(CLIENTS), list(liars))[:, None], 0, w).astype(w.dtype)
            found["liars silenced"][where] = _score("defend = none", honest, silenced, truth)
    return found


def _rules() -> list[str]:
    guarded = [f"defend = {chain}" for chain in DEFENSES]
    return [*guarded, *(f"aggregate = {name}{tail}" for name in ("mean", *AGGREGATORS) for tail in ("", ", uniform"))]


def _score(rule: str, p: Array, w: Array, truth: Array) -> float:
    key, _, spec = rule.partition(" = ")
    spec, _, uniform = spec.partition(", ")
    if uniform:
        w = np.ones_like(w)
    if key == "defend":
        vetted = vet(spec, p, w, np.ones(len(p)))
        p, w, spec = vetted.p, vetted.w, "mean"
    teacher = aggregator.build(spec)(p, w)
    return metrics.accuracy(np.nan_to_num(teacher, nan=1 / teacher.shape[1]), truth) or 0.0


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return, of each rule, accuracy without liars and under each attack, and the largest mean loss by share."""
    table: dict[str, Any] = {}
    for rule in runs[0]:
        of = {where: [run[rule][where] for run in runs] for where in runs[0][rule]}
        calm = of["nobody lies"]
        row: dict[str, Any] = {"nobody lies": spread(calm)}
        for share in SHARES:
            losses = {
                where: float(np.mean([a - b for a, b in zip(calm, hit, strict=True)]))
                for where, hit in of.items()
                if where.endswith(f"{share:.0%}")
            }
            worst = max(losses, key=lambda where: losses[where])
            row[f"worst loss, {share:.0%}"] = {"points": round(100 * losses[worst], 2), "attack": worst}
        table[rule] = {**row, "attacks": {where: spread(hit) for where, hit in of.items() if where != "nobody lies"}}
    return table


def main() -> None:
    """Measure, save and print the worst losses."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.attacks")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    tables = {}
    with ProcessPoolExecutor(given.jobs) as executor:
        for what, spec in DEALS.items():
            tables[what] = summary(list(executor.map(one_seed, range(given.seeds), [spec] * given.seeds)))
            save("attacks", {"seeds": given.seeds, "tables": tables})
    for what, table in tables.items():
        print(f"\n{what}\n| rule | nobody lies | worst loss, 20 % | worst loss, 40 % |\n|---|---|---|---|")
        for rule, row in table.items():
            worst = " | ".join(f"{row[f'worst loss, {s:.0%}']['points']:.1f}" for s in SHARES)
            print(f"| {rule} | {100 * row['nobody lies']['mean']:.1f} | {worst} |")


if __name__ == "__main__":
    main()
