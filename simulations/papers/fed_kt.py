"""FedKT, Li, He and Song, "Practical One-Shot Federated Learning for Cross-Silo Setting", arXiv:2010.01017 (IJCAI
2021).

One round of votes, and any classifier may vote, trees too. In the paper a party first distills an ensemble of its own
on the public set; here a party is one model. Its noise belongs to the privacy mechanisms, and none is claimed here.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"rounds": 1}
VARIANTS: Variants = {
    "FedKT, networks and trees vote": ("fed_kt", {"learner": "mlp, forest, logistic"}),
    "trees alone": ("fed_kt", {"learner": "forest"}),
    "soft labels instead of votes": (
        "fed_kt",
        {"learner": "mlp, forest, logistic", "release": "float32", "aggregate": "mean", "sharpen": "none"},
    ),
}
CLAIM = "models that no average of weights could join teach one student"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the student is better than the average client."""
    mixed, trees, soft = rows.values()
    return min(mixed.student or 0, trees.student or 0) > max(mixed.local or 0, trees.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
