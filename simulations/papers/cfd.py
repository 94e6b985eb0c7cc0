"""CFD, Sattler et al., "Communication-Efficient Federated Distillation", arXiv:2012.00632 (IEEE TNSE 2022).

Labels are rounded to the nearest distribution on a grid of b bits (b = 1 keeps the class alone), up and down; what
goes back is what the server's model says (dual distillation), not the mean of ballots, so that clients that were
absent need only the last message. The paper's point: one bit costs little accuracy and a factor of 32 and more in
bytes.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "CFD, 1 bit up and down": ("cfd", {}),
    "4 bits up and down": ("cfd", {"release": "quantize(bits=4)", "broadcast": "quantize(bits=4)"}),
    "float32 up and down": ("cfd", {"release": "float32", "broadcast": "float32"}),
}
CLAIM = "one bit is at most 3 points worse and 10 times smaller"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether accuracy stayed and bytes went."""
    one, four, float32 = rows.values()
    return (one.student or 0) > (float32.student or 0) - 0.03 and 10 * one.up < float32.up


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
