"""Fed-ET, Cho et al., "Heterogeneous Ensemble Knowledge Transfer for Training Large Models in Federated Learning",
IJCAI 2022.

A ballot counts by its variance over classes, so that flat ones count little, and the server's larger model learns the
most probable class of that consensus. A regularizer (lambda = 0.05) keeps what those say who disagree. The paper's
point: small, different clients train a model that none of them could hold.

What differs from the paper: clients send soft labels instead of their weights, so the variance is that of
probabilities and not of logits; what the server's model says goes back instead of its first layers. The regularizer
is the divergence from the whole consensus, in which the dissenters have their share, and not from the dissenters alone:
hard = 0.95 weighs the label 0.95 and the consensus 0.05, on the clients as well.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"learner": "mlp(hidden=16), mlp(hidden=8), logistic", "student": "mlp(hidden=256)"}
VARIANTS: Variants = {
    "Fed-ET": ("fed_et", {}),
    "plain mean": ("fed_et", {"aggregate": "mean"}),
    "no regularizer, label alone": ("fed_et", {"distill": "hard"}),
    "plain mean, soft labels (MHAT)": ("mhat", {}),
}
CLAIM = "weights by variance and hard labels teach better than soft labels of the plain mean"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the student of Fed-ET is the better one."""
    ours, _, _, soft = rows.values()
    return (ours.student or 0) > (soft.student or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
