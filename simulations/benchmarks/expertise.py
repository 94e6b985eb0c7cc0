"""The teacher after ONE round by how ballots are weighted: 20,000 private and 10,000 transfer images, small CNN.

Label skew of many kinds, 10 clients and 100. "10 clients x 2000 images, Dirichlet 0.1" is read in both ways that are in
use; the second may leave a class to nobody. The clients are trained once a seed; the same ballots are then weighted in
each way, so the rows differ in nothing else.

Run: python -m simulations.benchmarks.expertise [--seeds 5] [--only 0.1] [--data cifar10] [--jobs 2]
(``--data parquet:cifar10-jpeg`` for images of CIFAR-10 as JPEG in the folder ``cifar10-jpeg`` here)
(5 seeds, two partitions, ``--only "Dirichlet 0.1,"``: 20 minutes on 2 cores; all: about 2 hours; needs Fashion-MNIST)
Tables and columns that are not measured this time stay in the result file.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from fedkd import metrics
from fedkd.aggregation import aggregator
from fedkd.config import Config
from simulations.benchmarks.bench import RESULTS, save, spread
from simulations.benchmarks.clients import deal

PRIVATE, TRANSFER = 20_000, 10_000
DEALS: dict[str, tuple[str, int]] = {
    "each class dealt by Dirichlet 0.1, 2000 images on average": ("dirichlet(alpha=0.1)", 10),
    "each client's mix by Dirichlet 0.1, exactly 2000 images": ("inner_dirichlet(alpha=0.1, size=2000)", 10),
    "each class dealt by Dirichlet 0.05": ("dirichlet(alpha=0.05)", 10),
    "each class dealt by Dirichlet 0.3": ("dirichlet(alpha=0.3)", 10),
    "each class dealt by Dirichlet 1": ("dirichlet(alpha=1.0)", 10),
    "1 class a client": ("classes(per_client=1)", 10),
    "2 classes a client": ("classes(per_client=2)", 10),
    "5 classes a client": ("classes(per_client=5)", 10),
    "IID": ("iid", 10),
    "100 clients, each class dealt by Dirichlet 0.1": ("dirichlet(alpha=0.1)", 100),
    "100 clients, each class dealt by Dirichlet 0.3": ("dirichlet(alpha=0.3)", 100),
}
WEIGHTS = (
    "uniform",
    "confidence",
    "entropy",
    "kulsif",
    "density_ratio",
    "distance",
    "gaussian",
    "private_sketch",
    "density",
    "density, evidence = neighbors",
)
EPOCHS = {10: 4, 100: 10}  # a hundredth of the data makes few steps an epoch
CONFIG = Config(batch_size=32, learning_rate=1e-3)


def one_seed(
    seed: int, spec: str, clients: int, name: str, members: tuple[str, ...] = WEIGHTS
) -> dict[str, dict[str, float]]:
    """Return accuracy and NLL of the teacher on the transfer set, and local accuracy, for one seed."""
    private = None if spec.startswith("inner") else PRIVATE
    scene = deal(name, spec, clients, seed, transfer=TRANSFER, private=private)
    config = CONFIG.model_copy(update={"local_epochs": EPOCHS[clients]})
    ballots = [scene.ballot(k, config) for k in range(clients)]
    local = [metrics.accuracy(p, scene.truth) or 0.0 for p in ballots]
    result = {"local models (mean)": {"accuracy": float(np.mean(local))}}
    for member in members:
        weight, _, judge = member.partition(", evidence = ")
        judged = scene.judged(judge or "none", ballots)
        teacher = aggregator.build("mean")(judged, scene.weights(weight, ballots))
        taught = np.isfinite(teacher).all(axis=1)
        filled = np.where(taught[:, None], teacher, np.float32(1 / scene.data.classes))  # nobody answered: a guess
        result[member] = {
            "accuracy": metrics.accuracy(filled, scene.truth) or 0.0,
            "nll": metrics.nll(filled, scene.truth) or 0.0,
            "coverage": float(taught.mean()),
        }
    return result


def measure(what: str, seeds: list[int], name: str, jobs: int, members: tuple[str, ...]) -> dict[str, Any]:
    """Return the table of one partition: member to metric to spread over seeds."""
    spec, clients = DEALS[what]
    with ProcessPoolExecutor(jobs) as pool:
        runs = list(pool.map(one_seed, seeds, *([value] * len(seeds) for value in (spec, clients, name, members))))
    return {
        member: {kind: spread([run[member][kind] for run in runs]) for kind in runs[0][member]} for member in runs[0]
    }


def show(what: str, table: dict[str, Any]) -> None:
    """Print accuracy in percent and NLL of every member."""
    print(f"\n{what}\n| weight | accuracy | NLL |\n|---|---|---|")
    for member, row in table.items():
        nll = f"{row['nll']['mean']:.3f}" if "nll" in row else ""
        print(f"| {member} | {100 * row['accuracy']['mean']:.1f} ± {100 * (row['accuracy']['sd'] or 0):.1f} | {nll} |")


def main() -> None:
    """Measure over seeds, save after each partition and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.expertise")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--only", default="", help="partitions whose name has this text")
    parser.add_argument("--data", default="fashion_mnist", help="any data that fedkd can load, 30,000 images or more")
    parser.add_argument("--members", nargs="+", default=WEIGHTS, choices=WEIGHTS, help="columns that are measured anew")
    parser.add_argument("--missing", action="store_true", help="only partitions that are not in the result file yet")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    found = RESULTS / "expertise.json"
    known = json.loads(found.read_text()).get("tables", {}) if found.exists() else {}
    tables = known.setdefault(given.data, {})
    for what in (what for what in DEALS if given.only in what and not (given.missing and what in tables)):
        table = measure(what, list(range(given.seeds)), given.data, given.jobs, tuple(given.members))
        before = tables.get(what, {}).get("teacher", {})
        tables[what] = {"partition": DEALS[what][0], "seeds": given.seeds, "teacher": {**before, **table}}
        save("expertise", {"tables": known})
    for what, entry in known[given.data].items():
        show(f"{what} ({entry['seeds']} seeds)", entry["teacher"])


if __name__ == "__main__":
    main()
