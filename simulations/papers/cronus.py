"""Cronus, Chang et al., "Cronus: Robust and Heterogeneous Collaborative Learning with Black-Box Knowledge Transfer",
arXiv:1912.11279.

Clients share soft labels on a public set, and the server takes a robust mean of them: on each sample the ballots that
stick out along the main direction of disagreement are dropped, in two passes. The paper's point: soft labels have few
dimensions, in which a robust mean is possible, so a share of liars below one half does no harm.

What differs from the paper: clients learn the teacher and their own data in turn and not together, and a student is
trained at the server, which makes one number of the teacher. Up to 0.4 of the clients are counted on to lie: with fewer
than two liars nothing is dropped, so a smaller share would be the plain mean for a few clients.

Its own setting is data dealt evenly, and there it holds. Where labels are skewed, who sticks out is often the only one
who knows: honest experts are dropped, and Cronus is below the plain mean, attacked or not.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"clients": 10}
SPLITS = {"even": "iid", "skewed": "dirichlet(alpha=0.3)"}
ATTACKS = {"no attack": "none", "3 of 10 flip labels": "label_flip(share=0.3)", "3 of 10 poison": "lma(share=0.3)"}
MEANS: dict[str, dict[str, str]] = {"Cronus": {}, "plain mean": {"aggregate": "mean"}}
VARIANTS: Variants = {
    f"{split}, {liars}: {name}": ("cronus", {"partition": partition, "attack": attack, **mean})
    for split, partition in SPLITS.items()
    for liars, attack in ATTACKS.items()
    for name, mean in MEANS.items()
}
CLAIM = "under both attacks Cronus is above the plain mean, on even and on skewed data"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the filter helped wherever anyone lied."""
    return all(
        (rows[f"{split}, {liars}: Cronus"].student or 0) > (rows[f"{split}, {liars}: plain mean"].student or 0)
        for split in SPLITS
        for liars in list(ATTACKS)[1:]
    )


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
