"""FedAvg, McMahan et al., arXiv:1602.05629, and FedDF, Lin et al., "Ensemble Distillation for Robust Model Fusion in
Federated Learning", arXiv:2006.07242, against fedkd's default over bytes. Both send weights; fedkd never does.

FedAvg averages weights. FedDF then trains the average on softmax of the clients' mean logits on the public set.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.config import Config
from fedkd.units import percent, size
from simulations.baselines import play_weights
from simulations.papers.show import FULL, SMALL
from simulations.scene import play


def main(arguments: Sequence[str] | None = None, scene: Mapping[str, Any] | None = None) -> None:
    """Print accuracy and bytes a client, round by round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="digits, a few seconds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    settings = {**(SMALL if given.small else FULL), **(scene or {}), "seed": given.seed}
    config = Config(**settings)
    averaged, fused = play_weights(config), play_weights(config, distill=True)
    ours = play("expert", **settings)
    print("round    FedAvg     FedDF    expert   weights each way   expert up")
    for k, report in enumerate(ours):
        scores = (averaged[k].accuracy, fused[k].accuracy, report.metrics["student"])
        up = (report.metrics["bytes_up"] or 0) / config.clients
        print(f"{k + 1:5}" + "".join(f"{percent(s):>10}" for s in scores), end="")
        print(f"{size(averaged[k].bytes_each_way):>19}{size(up):>12}")


if __name__ == "__main__":
    main()
