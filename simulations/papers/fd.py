"""FD, Jeong et al., "Communication-Efficient On-Device Machine Learning", arXiv:1811.11479.

No public data: a client sends, for each class, the mean of its soft labels on its own samples of that class, C x C
numbers in all, and gets the mean of the others' back, which regularizes its training: CE(p, y) + CE(p, t_y). The
paper's point: kilobytes instead of megabytes. (A widely used library feeds averaged raw logits to the cross-entropy as
if they were probabilities; here they are probabilities.)
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

SCENE = {"student": "none", "keys": "classes"}
VARIANTS: Variants = {
    "FD": ("fd", {"feedback_epochs": 10}),
    "alone": ("fd", {"feedback": "none"}),
}
CLAIM = "C x C numbers from others make clients better than alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the clients gained."""
    fd, alone = rows.values()
    return (fd.local or 0) > (alone.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds, SCENE)
