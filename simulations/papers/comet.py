"""COMET, Cho et al., "Communication-Efficient and Model-Heterogeneous Personalized Federated Learning via Clustered
Knowledge Transfer", IEEE JSTSP 2023.

Row by row the server clusters the ballots (k-means) and sends each client the center of the cluster that it belongs
to: who holds other classes does not talk a client out of what it knows.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "COMET, 2 clusters": ("comet", {}),
    "one teacher for all": ("comet", {"feedback": "teacher"}),
    "alone": ("comet", {"feedback": "none"}),
}
CLAIM = "clients of a cluster are better than alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether clusters helped the clients."""
    clusters, one, alone = rows.values()
    return (clusters.local or 0) > (alone.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
