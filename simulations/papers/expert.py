"""fedkd's default: a ballot counts, sample by sample, by how near the sample lies to the client's own data.

The posterior of pooled data is the mixture of experts sum_k n_k p_k(x) p_k(y|x) / sum_k n_k p_k(x). A plain mean
pretends that all densities p_k are equal.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

MEAN = {"expertise": "uniform", "evidence": "none"}
VARIANTS: Variants = {
    "expert, one round": ("one_shot", {"rounds": 1}),
    "expert": ("expert", {}),
    "plain mean, one round": ("one_shot", {"rounds": 1, **MEAN}),
    "plain mean": ("expert", MEAN),
    "DS-FL": ("ds_fl", {}),
}
CLAIM = "one round of ours is above all rounds of the plain mean and of DS-FL"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether one round was enough."""
    once, ours, mean_once, mean, ds_fl = rows.values()
    return (once.student or 0) > max(mean.student or 0, ds_fl.student or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
