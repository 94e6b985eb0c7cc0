"""DS-FL, Itahara et al., "Distillation-Based Semi-Supervised Federated Learning", arXiv:2008.06180 (IEEE TMC 2023).

Clients send probabilities on rows of a public pool; the server sharpens their mean, softmax(p / T) with T = 0.1
("entropy-reduction aggregation"), and everyone learns it. The paper's point: under label skew the mean of ballots is
too flat to teach, and sharpening mends that at no cost in bytes.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "DS-FL, era(temperature=0.1)": ("ds_fl", {}),
    "the plain mean": ("ds_fl", {"sharpen": "none"}),
    "enhanced ERA, power(beta=2.0)": ("ds_fl", {"sharpen": "power(beta=2.0)"}),
}
CLAIM = "sharpening the mean teaches better than the mean"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether a sharpened teacher made the better student."""
    era, plain, power = (row.student or 0 for row in rows.values())
    return max(era, power) > plain


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
