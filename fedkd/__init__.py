"""fedkd: federated distillation. Clients share soft labels on a public transfer set; never data, weights, gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "FederatedDistillation", "__version__", "load", "simulate"]

if TYPE_CHECKING:
    from fedkd.config import Config
    from fedkd.engine import simulate
    from fedkd.flower.strategy import FederatedDistillation
    from fedkd.student import load


def __getattr__(name: str) -> Any:
    """Import the public classes when they are first asked for, so that ``import fedkd`` stays light."""
    if name == "Config":
        from fedkd.config import Config

        return Config
    if name == "FederatedDistillation":
        from fedkd.flower.strategy import FederatedDistillation

        return FederatedDistillation
    if name == "simulate":
        from fedkd.engine import simulate

        return simulate
    if name == "load":
        from fedkd.student import load

        return load
    raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
