"""MHAT, Hu et al., "MHAT: an efficient model-heterogenous aggregation training scheme for federated learning", 2021.

The server trains a model of its own on the mean of the clients' soft labels, and what that model says goes back
instead of the mean. The paper's point: the server's model smooths the ensemble's mistakes.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "MHAT, the student's labels go back": ("mhat", {}),
    "the mean itself goes back": ("mhat", {"feedback": "teacher"}),
    "nothing goes back": ("mhat", {"feedback": "none"}),
}
CLAIM = "clients taught by the server's model are better than alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether feedback helped the clients."""
    mhat, mean, alone = rows.values()
    return (mhat.local or 0) > (alone.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
