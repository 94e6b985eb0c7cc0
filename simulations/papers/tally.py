"""TallyTrain, arXiv:2607.00173: votes instead of soft labels, ceil(log2 C) bits a sample.

The paper claims that votes match soft labels at up to 1000 times fewer bytes.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "votes": ("tally", {}),
    "soft labels": ("tally", {"release": "float32", "aggregate": "mean", "sharpen": "none", "broadcast": "float32"}),
    "soft labels, sharpened": (
        "tally",
        {"release": "float32", "aggregate": "mean", "sharpen": "power(beta=2.0)", "broadcast": "float32"},
    ),
}
CLAIM = "votes are at most 3 points worse than soft labels and 10 times smaller"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether votes are as good and small."""
    votes, soft, sharp = rows.values()
    return (votes.student or 0) > max(soft.student or 0, sharp.student or 0) - 0.03 and 10 * votes.up < soft.up


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
