"""What a step of DP-SGD costs over a step without privacy on the same rows: linear model, hooks, ghost clipping.

A step without privacy is the gradient of the same batch and the optimizer. Processor time of one thread, medians;
noise comes from the operating system. Linear steps are measured in turn. A network's plain steps are measured before
and after those with hooks, and the faster half counts: a slow moment makes privacy look dearer rather than cheaper.
Run: python -m simulations.benchmarks.private_steps (about 2 minutes)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fedkd.learner import models
from fedkd.learner.linear_learner import clipped_sum
from fedkd.learner.models import seeded
from fedkd.learner.private_torch import Clipped, Way, clipping, size, try_out
from fedkd.learner.torch_learner import Adam
from fedkd.privacy.noise import Entropy, SystemEntropy
from fedkd.softlabels import Array, one_hot, softmax
from simulations.benchmarks.bench import save, spread

CLIP, NOISE, REPEATS = 1.0, 1.0, 9
BATCHES = (64, 256)
LINEAR = ((101, 64), (101, 256), (101, 4096), (1401, 4096))
"""Width and batch of linear models: principal components of public features, and features as they are."""
NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "cnn, digits": ("cnn", (1, 8, 8), {"width": 16, "hidden": 64}),
    "cnn": ("cnn", (1, 28, 28), {"width": 16, "hidden": 64}),
    "lenet": ("lenet", (1, 28, 28), {"dropout": 0.0}),
    "mlp": ("mlp", (1, 28, 28), {"hidden": 64}),
    "mlp, 2 layers of 512": ("mlp", (1, 28, 28), {"hidden": 512, "layers": 2}),
}


def in_turn(steps: dict[str, Callable[[], object]], *, seconds: float = 0.03) -> dict[str, list[float]]:
    """Return milliseconds a step, ``REPEATS`` times for each of ``steps``, in turn so that slow moments hit all."""
    counts, found = {}, {name: list[float]() for name in steps}
    for name, step in steps.items():
        step()
        start = time.process_time()
        step()
        counts[name] = max(1, round(seconds / max(time.process_time() - start, 1e-6)))
    for _ in range(REPEATS):
        for name, step in steps.items():
            start = time.process_time()
            for _ in range(counts[name]):
                step()
            found[name].append(1e3 * (time.process_time() - start) / counts[name])
    return found


def linear(width: int, batch: int, entropy: Entropy) -> dict[str, list[float]]:
    """Return the times of a step of softmax regression on rows of ``width``, as the linear learner takes it."""
    rng = np.random.default_rng(0)
    v, y = rng.standard_normal((batch, width)).astype(np.float32), rng.integers(0, 10, batch)
    weights = np.zeros((width, 10))
    lengths, wide = np.linalg.norm(v, axis=1), v.astype(np.float64)  # known once for all steps

    def plain() -> Array:
        error = softmax(v @ weights.astype(np.float32)) - one_hot(y, 10)
        return np.asarray(weights - 0.1 / batch * (v.T @ error))

    def private() -> Array:
        total = clipped_sum(v, y, weights.astype(np.float32), CLIP, lengths, wide)
        total += NOISE * CLIP * entropy.normals(total.shape)
        return np.asarray(weights - 0.1 / batch * total)

    return in_turn({"plain": plain, "private": private})


def network(name: str, batch: int, entropy: Entropy) -> dict[str, list[float]]:
    """Return the times of a step of a network: plain Adam, and DP-SGD by hooks and by ghost clipping."""
    kind, shape, options = NETWORKS[name]
    net: nn.Module = seeded(0, lambda: models.build(kind, shape, 10, **options))
    rng = np.random.default_rng(0)
    x, y = rng.random((batch, *shape), np.float32), rng.integers(0, 10, batch)
    inputs, labels, optimizer = torch.from_numpy(x), torch.from_numpy(y), Adam(net.parameters(), 1e-3)

    def plain() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    found, physical = in_turn({"plain": plain}), try_out(net, shape, name).physical
    for ghost in (False, True):
        with clipping(net, CLIP, Way(ghost, physical)) as clipped:

            def private(clipped: Clipped = clipped) -> Array:
                return np.asarray(clipped.sum(x, y) + NOISE * CLIP * entropy.normals(size(net)))

            found |= in_turn({"ghost" if ghost else "hooks": private})
    again = in_turn({"plain": plain})
    found["plain"] = [min(a, b) for a, b in zip(sorted(found["plain"]), sorted(again["plain"]), strict=True)]
    return found


def row(times: dict[str, list[float]]) -> dict[str, object]:
    """Return milliseconds, and how many times those of a plain step they are."""
    base = statistics.median(times["plain"])
    told: dict[str, object] = {f"{name}, ms": spread(values, 3) for name, values in times.items()}
    ratios = {f"{name} / plain": round(statistics.median(v) / base, 2) for name, v in times.items() if name != "plain"}
    return told | ratios


def main() -> None:
    """Measure and save."""
    torch.set_num_threads(1)
    entropy = SystemEntropy()
    linears = [{"width": w, "batch": b, **row(linear(w, b, entropy))} for w, b in LINEAR]
    networks = []
    for name, (kind, shape, options) in NETWORKS.items():
        net = models.build(kind, shape, 10, **options)
        chosen = "ghost" if try_out(net, shape, name).ghost else "hooks"
        for batch in BATCHES:
            about = {"network": name, "parameters": models.count(net), "batch": batch, "chosen": chosen}
            networks.append({**about, **row(network(name, batch, entropy))})
    save("private_steps", {"repeats": REPEATS, "linear": linears, "networks": networks})


if __name__ == "__main__":
    main()
