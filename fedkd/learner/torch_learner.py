"""A torch network as a learner: Adam, minibatches from our own random stream, state as plain arrays."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from fedkd.augment import augment as augmentations
from fedkd.errors import CheckpointError, ConfigError, ExtraError, FedkdError, PrivacyError
from fedkd.events import Event
from fedkd.learner.models import seeded
from fedkd.learner.protocol import Training, check_steps
from fedkd.losses import distill_loss
from fedkd.privacy.noise import Entropy
from fedkd.schedule import schedule as schedules
from fedkd.softlabels import Array

TAINTED = "fedkd.tainted"
"""An empty array of this name is in a state that knows private data without noise."""


class Adam:
    """torch's fused Adam through its functional form.

    The class ``torch.optim.Adam`` imports torch's compiler and sympy when it is first made, which takes longer than a
    whole run on small data; this does not, and a step takes a quarter of the time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        """Start with zero moments for those of ``parameters`` that learn."""
        self.parameters = [p for p in parameters if p.requires_grad]
        self.learning_rate = learning_rate
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        gradients = [(i, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None]
        live = [i for i, _ in gradients]
        adam(
            [self.parameters[i] for i in live],
            [gradient for _, gradient in gradients],
            [self.means[i] for i in live],
            [self.squares[i] for i in live],
            [],
            [self.steps[i] for i in live],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


class TorchLearner:
    """A network that learns with Adam. The optimizer starts anew in each call, so nothing but weights must be kept."""

    def __init__(self, network: nn.Module, training: Training, architecture: str) -> None:
        """Take a network (B, ...) -> logits (B, C); environment variable FEDKD_DEVICE moves it off the CPU."""
        name = os.environ.get("FEDKD_DEVICE", "cpu")
        try:
            self.device = torch.device(name)
            self.network = network.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"FEDKD_DEVICE: cannot use {name!r}: {str(error).splitlines()[0]}") from None
        self.training, self.architecture = training, architecture
        self.views = [] if training.augment == "none" else augmentations.chain(training.augment)
        self.schedule = schedules.build(training.schedule)
        self.parameters = sum(p.numel() for p in network.parameters())
        self.tainted = False
        self._way: dict[tuple[int, ...], Any] = {}

    def fit(self, x: Array, y: Array, *, rng: np.random.Generator) -> None:
        """Minimize the cross entropy of private labels for ``training.epochs`` passes."""
        self.tainted = True
        label, batch = self._tensor(y), self._batches(x, rng)

        def loss(rows: Array) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch(rows)), label[self._tensor(rows)])

        self._learn(len(x), loss, self.training.epochs, rng)

    def distill(
        self,
        x: Array,
        p: Array,
        *,
        w: Array,
        rng: np.random.Generator,
        hint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Minimize the configured distillation loss for ``training.distill_epochs`` passes over rows with w > 0.

        ``hint`` (inputs (B, ...) -> (B,), see :mod:`fedkd.learner.hint`) is added to the loss of each row.
        """
        counts = np.flatnonzero(w > 0)
        if not len(counts):
            return
        teacher = self._tensor(p[counts].astype(np.float32, copy=False))
        weight = self._tensor((w[counts] / w[counts].mean()).astype(np.float32))
        batch = self._batches(x if len(counts) == len(x) else x[counts], rng)
        each = distill_loss.build(self.training.distill)

        def loss(rows: Array) -> Tensor:
            i, inputs = self._tensor(rows), batch(rows)
            missed: Tensor = each(self.network(inputs), teacher[i])
            if hint is not None:
                missed = missed + hint(inputs)
            return (missed * weight[i]).mean()

        self._learn(len(counts), loss, self.training.distill_epochs, rng)

    def fit_private(
        self,
        x: Array,
        y: Array,
        *,
        rate: float,
        clip: float,
        noise_multiplier: float,
        steps: int,
        expected_batch: float,
        entropy: Entropy,
        step: float = 1.5,
    ) -> Event:
        """Learn private labels by ``steps`` steps of DP-SGD (:mod:`.private_torch`) and return what it cost.

        The numbers mean what they mean to :meth:`.LinearLearner.fit_private`. ``clip`` is the
        length of an example's gradient over all weights; from 0.1 to 5 it makes no difference to our networks, since
        steps are divided by it. ``training`` has no say here: examples are taken as they are, unaugmented.
        """
        check_steps(rate, clip, noise_multiplier, steps, expected_batch, step)
        if self.tainted:
            raise PrivacyError("this model has learned private data without noise: start a new one to fit privately")
        self.check_private(x.shape[1:])

        def descent() -> Event:
            event: Event = _private_torch(self.architecture).descend(
                self.network,
                x,
                y,
                self._way[x.shape[1:]],
                rate=rate,
                clip=clip,
                noise_multiplier=noise_multiplier,
                steps=steps,
                expected_batch=expected_batch,
                entropy=entropy,
                step=step,
            )
            return event

        # Dropout draws from torch's own generator. Its masks must be as secret as the noise: they, too, go by position.
        return seeded(int(entropy.words(1)[0]) >> 1, descent)

    def check_private(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`PrivacyError` unless this network can learn privately from inputs of ``shape``."""
        if shape not in self._way:
            what = f"learner {self.architecture!r}"
            self._way[shape] = _private_torch(self.architecture).try_out(self.network, shape, what)

    def predict(self, x: Array) -> Array:
        """Return soft labels (n, C)."""
        self.network.eval()
        with torch.inference_mode():
            parts = [  # of copies, because a user's network may work in place
                self.network(self._tensor(x[i : i + 512].copy())).softmax(-1) for i in range(0, max(len(x), 1), 512)
            ]
        return np.asarray(torch.cat(parts).cpu().numpy(), np.float32)

    def state(self) -> dict[str, Array]:
        """Return copies of all weights and buffers, and whether they know private data without noise."""
        state = {name: value.detach().cpu().numpy().copy() for name, value in self.network.state_dict().items()}
        return {**state, TAINTED: np.zeros(0, bool)} if self.tainted else state

    def load(self, state: dict[str, Array]) -> None:
        """Take up weights and buffers."""
        if not state:
            return
        weights = {name: torch.from_numpy(np.array(value)) for name, value in state.items() if name != TAINTED}
        try:
            self.network.load_state_dict(weights)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise CheckpointError(f"this state is not one of {self.architecture}: {why}") from None
        self.tainted = TAINTED in state

    def _batches(self, x: Array, rng: np.random.Generator) -> Callable[[Array], Tensor]:
        """Return a function that gives rows of ``x`` as the network shall see them in this step."""
        if not self.views:
            inputs = self._tensor(x)
            return lambda rows: inputs[self._tensor(rows)]
        return lambda rows: self._tensor(functools.reduce(lambda seen, view: view(seen, rng), self.views, x[rows]))

    def _learn(self, count: int, loss: Callable[[Array], Tensor], epochs: int, rng: np.random.Generator) -> None:
        """Minimize ``loss(rows)`` over minibatches of ``count`` rows."""
        size = self.training.batch_size
        optimizer = Adam(self.network.parameters(), self.training.learning_rate)
        self.network.train()
        lone = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.network.modules())
        noise = int(rng.integers(2**62))

        def passes() -> None:
            for epoch in range(epochs):
                order = rng.permutation(count)
                for start in range(0, count, size):
                    rows = order[start : start + size]
                    if lone and len(rows) == 1:
                        continue  # batch statistics of one sample do not exist
                    done = (epoch + start / count) / epochs
                    optimizer.learning_rate = self.training.learning_rate * self.schedule(done)
                    value = loss(rows)
                    if not torch.isfinite(value):
                        raise FedkdError(
                            f"training of {self.architecture} diverged: the loss is {value.item()}; "
                            f"lower learning_rate ({self.training.learning_rate:g})"
                        )
                    optimizer.zero_grad()
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

        seeded(noise, passes)  # dropout draws from torch's own generator

    def _tensor(self, array: Array) -> Tensor:
        # Without a copy where possible. Arrays out of a frame are read-only, which torch cannot promise to respect.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)


def _private_torch(what: str) -> Any:
    try:
        from fedkd.learner import private_torch
    except ModuleNotFoundError as error:
        raise ExtraError(f"DP-SGD of learner {what!r}", str(error.name), "torch") from None
    return private_torch
