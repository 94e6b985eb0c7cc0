"""FedAUX, Sattler et al., "FedAUX: Leveraging Unlabeled Auxiliary Data in Federated Learning", arXiv:2102.02514.

A client scores each public sample once by how certain it is that the sample is like its own data, and the teacher is
softmax(sum_k s_k z_k / sum_k s_k), the mean of logits weighted by these scores. The paper's point: where labels are
skewed, scores make a far better teacher than the plain mean of logits.

What differs from the paper: no weights of models travel, so clients do not start from the student, and nothing goes
back to them. A score there is P(private | x) in (0, 1], from a logistic regression on features of a network that was
pretrained on public data; here it is the odds of that, a density ratio, on principal components of the public inputs,
because no pretrained network is at hand. Odds are not bounded by 1, so a client that surely knows a sample counts for
more here. The paper adds noise to its scores for privacy; none is added here and none is claimed.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "FedAUX, certainty scores": ("fed_aux", {}),
    "no scores, mean logits": ("fed_aux", {"expertise": "uniform"}),
    "scores on probabilities": ("fed_aux", {"aggregate": "mean"}),
}
CLAIM = "scores teach better than the plain mean of logits"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether the scores helped."""
    scored, plain, _ = rows.values()
    return (scored.student or 0) > (plain.student or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
