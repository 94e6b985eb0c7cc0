"""PrivateKT, Qi et al., "Differentially private knowledge transfer for federated learning", Nat. Commun. 2023.

The structure of the method without its noise: few rows, drawn in proportion to exp(entropy) of what the student says;
hard labels; a vote; and a student that learns from the last 25 rounds together. (The shipped demo claims epsilon 5 a
round and composes nothing over its 500 rounds. Here no privacy is claimed at all.)
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"rounds": 4}
VARIANTS: Variants = {
    "PrivateKT, uncertain rows": ("private_kt", {}),
    "uniform rows": ("private_kt", {"select": "uniform(size=50)"}),
    "without the buffer": ("private_kt", {"replay": 1}),
}
CLAIM = "a buffer of rounds teaches better than the last round alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the buffer helped."""
    buffered, uniform, last = rows.values()
    return (buffered.student or 0) > (last.student or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
