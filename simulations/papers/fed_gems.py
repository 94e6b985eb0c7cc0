"""FedGEMS, Cheng et al., "Federated Learning of Larger Server Models via Selective Knowledge Fusion",
arXiv:2110.11027.

The public set is labeled. The server asks only for rows that it gets wrong; ballots that are wrong do not count and
the others weigh softmax(1 / entropy). It learns 0.75 of the label and 0.25 of the ensemble there, or of what it said
itself when it was last right. The paper's point: knowledge is fused selectively, so liars and weak clients do no harm.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "FedGEMS": ("fed_gems", {"select": "wrong(size=300)"}),
    "labels unused (DS-FL)": ("ds_fl", {}),
}
CLAIM = "public labels make a better server"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether labels helped."""
    gems, unlabeled = rows.values()
    return (gems.student or 0) > (unlabeled.student or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
