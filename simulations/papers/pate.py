"""PATE, Papernot et al., "Semi-supervised Knowledge Transfer for Deep Learning from Private Training Data",
arXiv:1610.05755.

Many teachers on disjoint shares of the data vote on public inputs; a student learns the winners. The noise on the
votes is the privacy mechanism and is not part of this file. More teachers vote more reliably but know less each.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"rounds": 1, "partition": "iid"}
VARIANTS: Variants = {
    "5 teachers": ("pate", {"clients": 5}),
    "20 teachers": ("pate", {"clients": 20}),
    "60 teachers": ("pate", {"clients": 60}),
}
CLAIM = "an ensemble of weak teachers is better than one of them"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the votes are better than the voters."""
    five, twenty, sixty = rows.values()
    return all((row.teacher or 0) > (row.local or 0) for row in (five, twenty, sixty))


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
