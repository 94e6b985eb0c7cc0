"""DP-SGD of torch networks: sums of clipped per-example gradients, and steps on them with noise (arXiv:1607.00133).

The one file that imports Opacus (arXiv:2109.12298), and of Opacus only the hooks that know per-example gradients, or
their norms, layer by layer. Batches, clipping and noise are ours: all randomness that protects comes from an
:class:`~fedkd.privacy.noise.Entropy`, never from torch. A network is first tried on two public rows of noise
(:func:`try_out`): it must keep examples apart, and what the hooks say must be what autograd says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedkd.errors import PrivacyError
from fedkd.events import SampledGaussian
from fedkd.learner.models import seeded
from fedkd.privacy.noise import Entropy
from fedkd.softlabels import Array

MEMORY = 2**26
"""Numbers (256 MiB) that a physical batch may fill with gradients, activations and unfolded images."""
LARGEST = 1024
"""Examples in a physical batch, at most."""
HAIR = 5e-6
"""Gradients are cut to this much less than the clip, relatively, for what rounding in single precision adds."""
FORMING = 20
"""What a weight of a dense layer costs in multiplications where the gradient of each example is formed (measured)."""
MOMENTUM = 0.9
PACE = 2 / 15
"""Length of the first step for ``step = 1``, where all gradients are as long as the clip and point the same way."""

MENDS: tuple[tuple[Any, str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "mixes the examples of a batch; put nn.GroupNorm in its place"),
    (nn.modules.instancenorm._InstanceNorm, "keeps statistics of private data; set track_running_stats=False"),
    (nn.RNNBase, "has no per-example gradients; put opacus.layers.DPLSTM, DPGRU or DPRNN in its place"),
    (nn.MultiheadAttention, "has no per-example gradients; put opacus.layers.DPMultiheadAttention in its place"),
)
"""Layers that cannot learn privately, each with the reason and the mend."""
LEFT = ("activations", "max_batch_len")
"""What the hooks leave on layers when a pass is not finished."""


@dataclass(frozen=True)
class Way:
    """How gradients of a network are clipped: by ``ghost`` or hooks, and how many examples at a time."""

    ghost: bool
    physical: int


def try_out(network: nn.Module, shape: Sequence[int], what: str) -> Way:
    """Return how ``network`` is trained privately, or raise :class:`PrivacyError` in one line where it cannot be.

    Runs it on two rows of noise of ``shape``: nothing private is read, and no buffer keeps anything.
    """
    _refuse_layers(network, what)
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    numbers = np.random.Generator(np.random.PCG64(0)).random((3, *shape), np.float32)
    device = next(network.parameters()).device
    x, y = torch.from_numpy(numbers).to(device), torch.zeros(2, dtype=torch.long, device=device)
    was = network.training
    try:
        network.train()
        with torch.no_grad():  # equal masks of dropout in all passes, so that only the other example is another
            one, two = (seeded(0, partial(network, x[rows])) for rows in ([0, 1], [0, 2]))
        if not torch.allclose(one[0], two[0], rtol=1e-4, atol=1e-5, equal_nan=True):
            raise PrivacyError(f"{what} cannot learn by DP-SGD: what it says of an example depends on the others")
        changed = [name for name, buffer in network.named_buffers() if not torch.equal(buffer, kept[name])]
        if changed:
            raise PrivacyError(f"{what} cannot learn by DP-SGD: its buffer {changed[0]!r} would keep private data")
        way = _way(network, x[:2])
        norms = seeded(0, partial(_tried, network, x[:2], y, False, what))
        if way.ghost:
            try:
                other = seeded(0, partial(_tried, network, x[:2], y, True, what))
                agree = torch.allclose(norms, other, rtol=1e-3, atol=1e-6)
            except (RuntimeError, NotImplementedError):  # layers that are used twice, for one
                agree = False
            return way if agree else replace(way, ghost=False, physical=max(1, way.physical // 8))
        return way
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise PrivacyError(f"{what} cannot learn by DP-SGD: on rows of shape {tuple(shape)} it says: {said}") from None
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(kept[name])
        network.train(was)


class _Contiguous:
    """Opacus unfolds images by their strides as if channels came first, and is wrong where they lie last."""

    def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
        activations, backprops = super().rearrange_grad_samples(**given)  # type: ignore[misc]
        return [each.contiguous() for each in activations], backprops.contiguous()


class _Hooks(_Contiguous, GradSampleHooks):  # type: ignore[misc]
    pass


class _Ghost(_Contiguous, GradSampleHooksFastGradientClipping):  # type: ignore[misc]
    pass


class Clipped:
    """Sums of clipped per-example gradients of cross entropy, all weights that learn in one row (P,)."""

    def __init__(self, network: nn.Module, clip: float, way: Way) -> None:
        """Use :func:`clipping` instead, which takes the hooks off again."""
        self.network, self.clip, self.way = network, clip, way
        self.parameters = learning(network)
        self.hooks = (_Ghost if way.ghost else _Hooks)(network, loss_reduction="sum")

    def sum(self, x: Array, y: Array) -> Array:
        """Return the sum (P,) float64 over examples (n, ...), each of norm at most ``clip``; of none it is zero."""
        total = np.zeros(size(self.network))
        device = self.parameters[0].device
        for start in range(0, len(x), self.way.physical):
            rows = slice(start, start + self.way.physical)
            part = self._part(torch.tensor(x[rows], device=device), torch.tensor(y[rows], device=device))
            total += part.double().cpu().numpy()
        return total

    def norms(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return norms (n,) of the examples' gradients and their losses (n,); the gradients stay on the parameters."""
        self._forget()
        loss = nn.functional.cross_entropy(self.network(x), y, reduction="none")
        with warnings.catch_warnings():  # that inputs have no gradients of their own is how it is meant
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            loss.sum().backward(retain_graph=self.way.ghost)  # type: ignore[no-untyped-call]
        each = []
        for name, p in self.network.named_parameters():
            if not p.requires_grad:
                continue
            samples = None if self.way.ghost else p.grad_sample  # type: ignore[attr-defined]
            norm = getattr(p, "_norm_sample", None) if samples is None else samples.flatten(1).norm(dim=1)
            if norm is not None:
                each.append(norm)
            elif p.grad is not None:
                raise PrivacyError(f"Opacus does not know the gradient of {name!r}")
        return torch.stack(each).norm(dim=0) if each else loss.detach() * 0, loss

    def _part(self, x: Tensor, y: Tensor) -> Tensor:
        norm, loss = self.norms(x, y)
        # An example of absurd inputs would tell of itself by spoiling the model: it counts as none.
        sound = torch.isfinite(norm)
        if not sound.all():
            return self._part(x[sound], y[sound])
        factor = (self.clip * (1 - HAIR) / norm.clamp(min=1e-30)).clamp(max=1)
        if not self.way.ghost:
            return torch.cat([_weighed(p, factor) for p in self.parameters])
        self._forget()
        self.hooks.disable_hooks()  # the second pass is an ordinary one, of losses that carry their factors
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            (factor * loss).sum().backward()  # type: ignore[no-untyped-call]
        self.hooks.enable_hooks()
        return torch.cat([_gradient(p).flatten() for p in self.parameters])

    def _forget(self) -> None:
        for p in self.parameters:
            p.grad, p.grad_sample = None, None  # type: ignore[attr-defined]
            if hasattr(p, "_norm_sample"):
                del p._norm_sample

    def close(self) -> None:
        """Take the hooks off and forget what was seen."""
        self._forget()
        self.hooks.cleanup()
        for layer in self.network.modules():
            for name in LEFT:
                if hasattr(layer, name):
                    delattr(layer, name)


@contextmanager
def clipping(network: nn.Module, clip: float, way: Way) -> Iterator[Clipped]:
    """Put hooks on ``network`` in training mode for as long as the block lasts; buffers are then as they were."""
    in_place = [layer for layer in network.modules() if getattr(layer, "inplace", False) is True]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    was = network.training
    for layer in in_place:  # what hooks have seen must not be overwritten
        layer.inplace = False  # type: ignore[assignment]
    network.train()
    clipped = None
    try:
        clipped = Clipped(network, clip, way)
        yield clipped
    finally:
        if clipped is not None:
            clipped.close()
        for layer in in_place:
            layer.inplace = True  # type: ignore[assignment]
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
        network.train(was)


def descend(
    network: nn.Module,
    x: Array,
    y: Array,
    way: Way,
    *,
    rate: float,
    clip: float,
    noise_multiplier: float,
    steps: int,
    expected_batch: float,
    entropy: Entropy,
    step: float,
) -> SampledGaussian:
    """Take ``steps`` steps of DP-SGD on private inputs (N, ...) and labels (N,), and return the event.

    Stochastic gradient descent with momentum, which needs nothing kept between calls. Sums are divided by the clip, so
    that it says which gradients are cut and not how far a step goes; steps shrink to nothing, so that the last noise,
    which nothing corrects, moves the model least.
    """
    parameters, sizes = learning(network), [p.numel() for p in learning(network)]
    velocity = np.zeros(sum(sizes))
    with clipping(network, clip, way) as clipped:
        for t in range(steps):
            chosen = np.arange(len(x)) if rate == 1 else np.flatnonzero(entropy.coins(len(x), rate))
            total = clipped.sum(x[chosen], y[chosen])
            total += noise_multiplier * clip * entropy.normals(total.shape)
            velocity = MOMENTUM * velocity + total / (clip * expected_batch)
            move = torch.from_numpy((-PACE * step * (1 - t / steps) * velocity).astype(np.float32))
            with torch.no_grad():
                for p, part in zip(parameters, torch.split(move, sizes), strict=True):
                    p.add_(part.view(p.shape).to(p.device))
    return SampledGaussian(rate=float(rate), noise_multiplier=float(noise_multiplier), count=steps)


def size(network: nn.Module) -> int:
    """Return how many numbers of ``network`` learn."""
    return sum(p.numel() for p in learning(network))


def learning(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn, each once."""
    return [p for p in network.parameters() if p.requires_grad]


def _refuse_layers(network: nn.Module, what: str) -> None:
    """Raise :class:`PrivacyError` at the first layer that cannot learn privately."""
    for name, layer in network.named_modules():
        told = f"{what} cannot learn by DP-SGD: layer {name!r} ({type(layer).__name__})"
        for kind, mend in MENDS:
            tracks = getattr(layer, "track_running_stats", True)
            if isinstance(layer, kind) and (tracks or "track" not in mend):
                raise PrivacyError(f"{told} {mend}")
        trains = any(p.requires_grad for p in layer.parameters(recurse=False))
        if trains and next(layer.buffers(), None) is not None:
            raise PrivacyError(f"{told} has buffers beside what it learns, which Opacus does not take")
        if trains and ModuleValidator.VALIDATORS.get(type(layer), lambda _: [])(layer):
            raise PrivacyError(f"{told} is one that Opacus does not take")
    if not learning(network):
        raise PrivacyError(f"{what} cannot learn by DP-SGD: it has no parameters that learn")


def _way(network: nn.Module, x: Tensor) -> Way:
    """Choose by size: ghost clipping never forms the gradients of dense layers, but goes backward twice.

    To form them costs about ``FORMING`` multiplications for each of their weights. The second pass costs as many as the
    network has, which in convolutions is each weight once for every place.
    """
    floats = work = dense = 0
    seen: list[tuple[nn.Module, int]] = []

    def see(layer: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            seen.append((layer, out.numel() // len(x)))

    handles = [layer.register_forward_hook(see) for layer in network.modules()]
    try:
        with torch.no_grad():
            seeded(0, lambda: network(x))
    finally:
        for handle in handles:
            handle.remove()
    for layer, out in seen:
        floats += 2 * out
        if isinstance(layer, nn.modules.conv._ConvNd):
            places = out // layer.out_channels
            work += places * layer.weight.numel()
            floats += places * layer.weight[0].numel() * layer.groups  # the unfolded image
        elif type(layer) is nn.Linear:
            work += out // layer.out_features * layer.weight.numel()
            dense += layer.weight.numel()
    ghost = FORMING * dense > work
    floats += 2 * (size(network) - (dense if ghost else 0))
    return Way(ghost, max(1, min(LARGEST, MEMORY // max(floats, 1))))


def _tried(network: nn.Module, x: Tensor, y: Tensor, ghost: bool, what: str) -> Tensor:
    """Return the norms of two examples' gradients; raise unless the hooks' sum is that of autograd."""
    with clipping(network, 1.0, Way(ghost, len(x))) as clipped:
        try:
            norms, _ = clipped.norms(x, y)
        except PrivacyError as error:
            raise PrivacyError(f"{what} cannot learn by DP-SGD: {error}") from None
        for name, p in network.named_parameters():
            seen = None if ghost else getattr(p, "grad_sample", None)
            if seen is not None and not torch.allclose(seen.sum(0), _gradient(p), rtol=1e-3, atol=1e-5):
                raise PrivacyError(f"{what} cannot learn by DP-SGD: Opacus does not know the gradient of {name!r}")
        return norms


def _weighed(p: nn.Parameter, factor: Tensor) -> Tensor:
    samples = p.grad_sample  # type: ignore[attr-defined]
    return torch.zeros(p.numel(), device=p.device) if samples is None else factor @ samples.flatten(1)


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
