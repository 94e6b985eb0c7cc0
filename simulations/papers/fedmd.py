"""FedMD, Li and Wang, "Heterogenous Federated Learning via Model Distillation", arXiv:1910.03581.

Clients with models of their own send logits on a public set; everyone "digests" their mean (mean absolute error on
logits) and "revisits" the private data. There is no server model; the student here only watches.

The paper first trains every client on the labeled public set. Without that, a client is sure that classes which it has
never seen do not exist, and in a mean of logits (a product of probabilities) one such client vetoes all others.
"""

from collections.abc import Mapping

from simulations.papers.show import Row, Variants, main

VARIANTS: Variants = {
    "FedMD, mean of logits": ("fedmd", {}),
    "the same with the mean of probabilities": ("fedmd", {"aggregate": "mean", "distill": "kl"}),
    "nothing goes back": ("fedmd", {"feedback": "none"}),
}
CLAIM = "clients that digest what others say become better than alone"


def holds(rows: Mapping[str, Row]) -> bool:
    """Say whether feedback helped the clients' own models."""
    logits, probabilities, alone = rows.values()
    return max(logits.local or 0, probabilities.local or 0) > (alone.local or 0)


if __name__ == "__main__":
    main(VARIANTS, CLAIM, holds)
