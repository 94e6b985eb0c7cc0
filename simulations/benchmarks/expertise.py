"""Fashion-MNIST, 10 clients x 2000 images, Dirichlet 0.1, 10,000 transfer images, ONE round: teacher by expertise.

"10 clients x 2000 images, Dirichlet 0.1" is read in both ways that are in use; the second may leave a class to nobody.

The clients are trained once a seed; the same ballots are then weighted in each way, so the rows differ in nothing else.
Run: python -m simulations.benchmarks.expertise [seeds] (5 seeds: 10 minutes on 2 cores; needs Fashion-MNIST)
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fedkd import metrics
from fedkd.aggregation import aggregator, stack
from fedkd.client import training_of
from fedkd.config import Config
from fedkd.dataset import as_inputs, fingerprint, load
from fedkd.expertise import expertise
from fedkd.learner import make_learner, set_threads
from fedkd.partition import partition
from fedkd.random import derive, generator
from fedkd.records import Release, TransferSet
from fedkd.softlabels import Array
from simulations.benchmarks.bench import save, spread

CLIENTS, PER_CLIENT, TRANSFER, ALPHA = 10, 2000, 10_000, 0.1
DEALS = {
    "each class dealt by Dirichlet 0.1, 2000 images on average": f"dirichlet(alpha={ALPHA})",
    "each client's mix by Dirichlet 0.1, exactly 2000 images": f"inner_dirichlet(alpha={ALPHA}, size={PER_CLIENT})",
}
WEIGHTS = ("uniform", "confidence", "entropy", "density", "density_ratio")
CONFIG = Config(local_epochs=4, batch_size=32, learning_rate=1e-3)


def one_seed(seed: int, deal: str) -> dict[str, dict[str, float]]:
    """Return accuracy and NLL of the teacher on the transfer set, and local accuracy, for one seed."""
    data = load("fashion_mnist")
    order = generator(seed, "order").permutation(len(data.y))
    pool, rest = order[:TRANSFER], order[TRANSFER:]
    inputs = as_inputs(data.x[pool])
    transfer, truth = TransferSet(inputs, fingerprint(inputs)), data.y[pool]
    mine = rest if deal.startswith("inner") else rest[: CLIENTS * PER_CLIENT]
    shares = [mine[part] for part in partition.build(deal)(data.y[mine], CLIENTS, generator(seed, "partition"))]
    ballots: list[Array] = []
    weights: dict[str, list[Array]] = {name: [] for name in WEIGHTS}
    local = []
    rows = np.arange(TRANSFER)
    for k, share in enumerate(shares):
        x, y = as_inputs(data.x[share]), data.y[share]
        model = make_learner(
            "cnn",
            shape=x.shape[1:],
            classes=10,
            training=training_of(CONFIG, distill_epochs=1),
            seed=derive(seed, "client", k),
        )
        set_threads(1)
        model.fit(x, y, rng=generator(seed, "client", k))
        p = model.predict(inputs)
        ballots.append(p)
        local.append(metrics.accuracy(p, truth) or 0.0)
        for name in WEIGHTS:
            weights[name].append(expertise.build(name)(p, rows, transfer, x, generator(seed, "expertise", k)))
    result = {"local models (mean)": {"accuracy": float(np.mean(local))}}
    for name in WEIGHTS:
        stacked = stack([Release(p, w) for p, w in zip(ballots, weights[name], strict=True)], slice(None))
        teacher = aggregator.build("mean")(stacked.p, stacked.w)
        result[name] = {"accuracy": metrics.accuracy(teacher, truth) or 0.0, "nll": metrics.nll(teacher, truth) or 0.0}
    return result


def main() -> None:
    """Measure over seeds and save."""
    seeds = list(range(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    tables = {}
    with ProcessPoolExecutor(2) as pool:
        for what, deal in DEALS.items():
            runs = list(pool.map(one_seed, seeds, [deal] * len(seeds)))
            tables[what] = {
                name: {kind: spread([run[name][kind] for run in runs]) for kind in runs[0][name]} for name in runs[0]
            }
    save("expertise", {"seeds": seeds, "partitions": DEALS, "teacher_on_transfer_set": tables})


if __name__ == "__main__":
    main()
