"""DP-SGD of networks: what is clipped, the noise, the batches, what is refused, and what stays behind."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.audits.releases import _trainer
from fedkd.config import Config
from fedkd.errors import ConfigError, ExtraError, PrivacyError, SpecError
from fedkd.events import SampledGaussian
from fedkd.federation import federation
from fedkd.learner import Training, check_private, make_learner, private_torch
from fedkd.learner.linear_learner import clipped_sum
from fedkd.learner.models import seeded
from fedkd.learner.private_torch import Way, clipping, try_out
from fedkd.learner.torch_learner import TorchLearner
from fedkd.preflight import check_models
from fedkd.privacy import neighbors
from fedkd.privacy.audit import audit_mechanism
from fedkd.privacy.gaussian import epsilon_of
from fedkd.privacy.noise import SeededEntropy, SystemEntropy
from fedkd.privacy.report import statement
from fedkd.random import generator
from simulations.scene import play

SHAPE = (1, 8, 8)
NUMBERS = {"rate": 0.5, "clip": 1.0, "noise_multiplier": 1.0, "steps": 3, "expected_batch": 20.0}
HOOKS, GHOST = Way(False, 7), Way(True, 7)


class Unseen(nn.Module):
    """Reads a weight behind the back of its layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.layer.weight)


class Standardized(nn.Module):
    """Takes the mean of a batch without any layer that is known to."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        z = self.layer(x.flatten(1))
        return z - z.mean(dim=0)


class Counting(nn.Module):
    """Keeps a sum of what it saw in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.total += x.sum()
        return self.layer(x.flatten(1))


def grouped(*norm, inplace=True):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *norm, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(8 * 64, 3)
    )


def tied():
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(64, 3))


class Recorded(SeededEntropy):
    """A seeded entropy that counts what it gave."""

    def __init__(self, seed=0):
        super().__init__(generator(seed, "noise"))
        self.drawn, self.tossed = [], []

    def normals(self, shape):
        self.drawn.append(super().normals(shape))
        return self.drawn[-1]

    def coins(self, count, rate):
        self.tossed.append((count, rate))
        return super().coins(count, rate)


def make(spec="mlp(hidden=8)", *, shape=SHAPE, seed=0):
    return make_learner(spec, shape=shape, classes=3, training=Training(epochs=2, distill_epochs=2), seed=seed)


def wrapped(network):
    return TorchLearner(seeded(0, lambda: network), Training(), "mine:net")


def images(n, seed=0):
    """Dark images (n, 1, 8, 8) with one of three bright bands, and which band."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.uniform(0, 0.3, (n, *SHAPE)).astype(np.float32)
    for i, label in enumerate(y):
        x[i, :, 2 * label : 2 * label + 2] += 0.7
    return x, y


def gradient(network, x, y):
    """Return the gradient of one example, by autograd alone."""
    network.zero_grad()
    nn.functional.cross_entropy(network(torch.from_numpy(x[None])), torch.tensor([y])).backward()
    return np.concatenate([p.grad.flatten().numpy() for p in network.parameters()]).astype(np.float64)


NETWORKS = {
    "cnn": lambda: make("cnn(width=4, hidden=16)").network,  # weights lie channels last
    "mlp": lambda: make().network,
    "lenet": lambda: make("lenet", shape=(1, 16, 16)).network,
    "group norm, in place": lambda: grouped(nn.GroupNorm(2, 8)),
    "tied": tied,
}


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in NETWORKS for way in (HOOKS, GHOST) if (name, way) != ("tied", GHOST)],  # refused by ghost
    ids=lambda value: value if isinstance(value, str) else "ghost" if value is GHOST else "hooks",
)
def test_the_sum_is_that_of_clipped_gradients_one_by_one(name, way):
    network = seeded(1, NETWORKS[name])
    shape = (1, 16, 16) if name == "lenet" else SHAPE
    x, y = np.random.default_rng(0).random((20, *shape), np.float32), np.arange(20) % 3
    each = [gradient(network, *one) for one in zip(x, y, strict=True)]
    clip = float(np.median([np.linalg.norm(one) for one in each]))  # half of them are cut, half are not
    expected = sum(one * min(1, clip / np.linalg.norm(one)) for one in each)
    with clipping(network, clip, way) as clipped:  # in three physical batches
        assert clipped.sum(x, y) == pytest.approx(expected, abs=2e-5 * clip * math.sqrt(20))


@pytest.mark.parametrize("way", [HOOKS, GHOST], ids=["hooks", "ghost"])
@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
def test_a_linear_network_is_clipped_as_the_closed_form_says(clip, way):
    network = seeded(0, lambda: nn.Linear(6, 3, bias=False))
    v, y = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32), np.arange(20) % 3
    with clipping(network, clip, way) as clipped:
        found = clipped.sum(v, y).reshape(3, 6).T
    weights = network.weight.detach().numpy().T
    assert found == pytest.approx(clipped_sum(v, y, weights, clip), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("way", [HOOKS, GHOST], ids=["hooks", "ghost"])
def test_one_example_moves_the_sum_by_no_more_than_the_clip(way):
    x, y = images(30)
    for clip in (0.05, 0.7):
        with clipping(make("cnn(width=4)").network, clip, way) as clipped:
            lengths = [np.linalg.norm(clipped.sum(1e3 * x[i : i + 1], y[i : i + 1])) for i in range(30)]
        assert clip * 0.999 < max(lengths) <= clip


@pytest.mark.parametrize("way", [HOOKS, GHOST], ids=["hooks", "ghost"])
def test_an_example_of_absurd_inputs_counts_as_none(way):
    x, y = images(9)
    spoiled = x.copy()
    spoiled[2], spoiled[4, 0, 0, 0] = np.nan, np.inf
    sound = [0, 1, 3, 5, 6, 7, 8]
    with clipping(make().network, 1.0, way) as clipped:
        assert clipped.sum(spoiled, y) == pytest.approx(clipped.sum(x[sound], y[sound]), abs=1e-6)
        assert (clipped.sum(spoiled[2:3], y[2:3]) == 0).all()


def test_one_step_by_hand():
    """Two examples, three classes, no noise: from zero weights a gradient is (1/3 - y) v^T, of norm ||v|| sqrt(2/3)."""
    x, y = np.array([[3.0, 0.0], [0.0, 0.5]], np.float32), np.array([0, 2])
    network = nn.Linear(2, 3, bias=False)
    nn.init.zeros_(network.weight)
    event = wrapped(network).fit_private(
        x, y, rate=1.0, clip=0.6, noise_multiplier=0.0, steps=1, expected_batch=4.0, entropy=Recorded(), step=1.5
    )
    error = np.array([[-2, 1, 1], [1, 1, -2]]) / 3
    first, second = 0.6 * error[0] / math.sqrt(2 / 3), 0.5 * error[1]  # the first is cut, the second is 0.41 long
    expected = -0.2 / (4 * 0.6) * np.stack([first, second], axis=1)
    assert network.weight.detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert event == SampledGaussian(1.0, 0.0, 1)


def noise_of(entropy, noise_multiplier=2.0):
    """Return what noise a step of a client without data added, over the clip: recovered from its weights."""
    model = make("mlp(hidden=64)")
    before = model.state()
    model.fit_private(
        np.zeros((0, *SHAPE), np.float32), np.zeros(0, np.int64), rate=1.0, clip=0.5, noise_multiplier=noise_multiplier,
        steps=1, expected_batch=10.0, entropy=entropy, step=1.5,
    )  # fmt: skip
    moved = np.concatenate([(model.state()[name] - before[name]).ravel() for name in before])
    return moved * 10 / -0.2


def test_noise_is_the_multiplier_times_the_clip_and_nothing_near_it():
    z = noise_of(SystemEntropy())
    band = 5 / math.sqrt(2 * z.size)
    assert z.std() == pytest.approx(2.0, rel=band)
    for mutant in (1 / math.sqrt(2), 2.0):
        assert noise_of(SystemEntropy(), 2.0 * mutant).std() != pytest.approx(2.0, rel=band)


def test_an_audit_passes_it_and_finds_noise_too_small_by_the_root_of_two():
    train = _trainer("mlp(hidden=2)", (), 1.0, 0.1, 1)
    found = [
        audit_mechanism(
            neighbors.training(train, 0.4 / planted), epsilon_of(1 / 0.4, 1e-5), 1e-5, trials=100, confidence=0.8,
            entropy=Recorded(0),
        )
        for planted in (1.0, math.sqrt(2))
    ]  # fmt: skip
    assert [one.passed for one in found] == [True, False]


def test_every_step_draws_new_noise_and_new_coins_and_counts():
    entropy = Recorded()
    event = make().fit_private(*images(40), **NUMBERS, entropy=entropy)
    assert event == SampledGaussian(rate=0.5, noise_multiplier=1.0, count=3)
    assert entropy.tossed == [(40, 0.5)] * 3
    assert len(entropy.drawn) == 3 and not (entropy.drawn[0] == entropy.drawn[1]).any()


def test_batches_are_poisson(monkeypatch):
    sizes = []

    def counted(self, x, y):
        sizes.append(len(x))
        return np.zeros(private_torch.size(self.network))

    monkeypatch.setattr(private_torch.Clipped, "sum", counted)
    make().fit_private(*images(100), **{**NUMBERS, "rate": 0.2, "steps": 400}, entropy=SystemEntropy())
    assert np.mean(sizes) == pytest.approx(20, abs=5 * 4 / math.sqrt(400))
    assert np.std(sizes) == pytest.approx(4, rel=0.2)  # a fixed size would have none


@pytest.mark.parametrize("n", [0, 5])
def test_steps_in_which_nobody_takes_part_and_clients_smaller_than_a_batch_are_like_any_other(n):
    model = make()
    before = model.state()
    entropy = SystemEntropy()
    event = model.fit_private(*images(n), **{**NUMBERS, "rate": 1e-9, "steps": 4}, entropy=entropy)
    assert event == SampledGaussian(1e-9, 1.0, 4)
    assert all(np.abs(model.state()[name] - before[name]).min() > 0 for name in before)  # noise all the same
    event = model.fit_private(*images(n), **{**NUMBERS, "expected_batch": 64.0}, entropy=entropy)
    assert event == SampledGaussian(0.5, 1.0, 3)


def test_two_clients_that_start_alike_have_different_noise_and_equal_entropy_gives_equal_models():
    dropout = "lenet(dropout=0.3)"
    x, y = np.random.default_rng(0).random((20, 1, 16, 16), np.float32), np.arange(20) % 3
    made = []
    for entropy in (SystemEntropy(), SystemEntropy(), Recorded(3), Recorded(3)):
        model = make(dropout, shape=(1, 16, 16))
        torch.manual_seed(0)  # a generator that all seed alike decides nothing
        model.fit_private(x, y, **NUMBERS, entropy=entropy)
        made.append(model.state())
    one, two, three, four = (np.concatenate([value.ravel() for value in state.values()]) for state in made)
    assert not (one == two).any()
    assert three.tobytes() == four.tobytes()


def test_physical_batches_change_nothing():
    x, y = images(40)
    sums = []
    for physical in (1, 3, 1000):
        with clipping(make().network, 0.5, Way(True, physical)) as clipped:
            sums.append(clipped.sum(x, y))
    assert sums[0] == pytest.approx(sums[1], abs=1e-6)
    assert sums[0] == pytest.approx(sums[2], abs=1e-5)


@pytest.mark.parametrize("spec", ["mlp(hidden=16)", "cnn(width=4, hidden=16)"])
def test_with_little_noise_it_learns(spec):
    model = make(spec)
    model.fit_private(
        *images(300), rate=0.2, clip=1.0, noise_multiplier=0.5, steps=60, expected_batch=60.0, entropy=Recorded()
    )
    x, y = images(200, seed=1)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.97


def test_what_was_learned_without_noise_cannot_become_private():
    x, y = images(40)
    model, again = make(), make()
    model.fit(x, y, rng=generator(0))
    again.load(model.state())
    for one in (model, again):
        with pytest.raises(PrivacyError, match="learned private data without noise"):
            one.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())
    again.load(make().state())
    again.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())


def test_rounds_with_public_lessons_between_go_on_from_a_saved_state_the_same():
    x, y = images(40)
    p, w = np.eye(3, dtype=np.float32)[y], np.ones(40, np.float32)
    one = make()
    one.distill(x, p, w=w, rng=generator(0))
    one.fit_private(x, y, **NUMBERS, entropy=Recorded(0))
    two = make(seed=5)
    two.load({key: value.copy() for key, value in one.state().items()})
    for model in (one, two):
        model.distill(x, p, w=w, rng=generator(1))
        model.fit_private(x, y, **NUMBERS, entropy=Recorded(1))
    assert one.predict(x).tobytes() == two.predict(x).tobytes()


@pytest.mark.parametrize("spec", ["mlp(hidden=8)", "cnn(width=4)"])
def test_nothing_stays_behind_and_public_lessons_are_as_if_there_had_been_no_hooks(spec):
    x, y = images(20)
    model = make(spec)
    known, mode = [set(vars(layer)) for layer in model.network.modules()], model.network.training
    model.fit_private(x, y, **NUMBERS, entropy=Recorded())
    assert model.network.training == mode
    for before, layer in zip(known, model.network.modules(), strict=True):
        assert set(vars(layer)) == before
        assert not layer._forward_hooks and not layer._backward_hooks and not layer._backward_pre_hooks
    for p in model.network.parameters():
        assert p.grad is None and not vars(p)
    fresh = make(spec)
    fresh.load(model.state())
    for one in (model, fresh):
        one.distill(x, np.eye(3, dtype=np.float32)[y], w=np.ones(20, np.float32), rng=generator(0))
        assert all(not hasattr(p, "grad_sample") for p in one.network.parameters())
    assert model.predict(x).tobytes() == fresh.predict(x).tobytes()


def test_an_error_in_the_middle_leaves_no_hooks_and_no_private_activations(monkeypatch):
    model = make()

    def broken(*_, **__):
        raise RuntimeError("no loss today")

    model.check_private(SHAPE)
    monkeypatch.setattr(nn.functional, "cross_entropy", broken)
    with pytest.raises(RuntimeError, match="no loss today"):
        model.fit_private(*images(20), **NUMBERS, entropy=SystemEntropy())
    assert all(not layer._forward_hooks and not hasattr(layer, "activations") for layer in model.network.modules())


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda: grouped(nn.BatchNorm2d(8)), r"layer '1' \(BatchNorm2d\) mixes the examples.*put nn.GroupNorm"),
        (lambda: grouped(nn.BatchNorm2d(8, affine=False)), "mixes the examples of a batch"),  # Opacus takes this one
        (lambda: grouped(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), "set track_running_stats=False"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(64, 3)), r"\(LSTM\) has no per-example gradients; put opacus"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3).requires_grad_(False)), "no parameters that learn"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(65, 3)), r"on rows of shape \(1, 8, 8\) it says"),
        (Standardized, "what it says of an example depends on the others"),
        (Counting, "its buffer 'total' would keep private data"),
        (Unseen, "Opacus does not know the gradient of 'layer.weight'"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(256, 3)),
         "Opacus does not know the gradient of '0.weight'"),
    ],
)  # fmt: skip
def test_what_cannot_learn_privately_is_refused_in_one_line_before_anything_is_drawn(network, sentence):
    entropy, model = Recorded(), wrapped(network())
    before = {key: value.copy() for key, value in model.state().items()}
    with pytest.raises(PrivacyError, match=sentence) as caught:
        model.fit_private(*images(5), **NUMBERS, entropy=entropy)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("learner 'mine:net' cannot learn by DP-SGD")
    assert not entropy.drawn and all((model.state()[key] == before[key]).all() for key in before)


@pytest.mark.parametrize(
    "network", [grouped(nn.InstanceNorm2d(8)), grouped(nn.GroupNorm(2, 8)), grouped(nn.Dropout(0.5)), tied()]
)
def test_layers_that_keep_examples_apart_are_taken(network):  # fmt: skip
    wrapped(network).fit_private(*images(5), **NUMBERS, entropy=Recorded())


def test_the_way_is_chosen_by_size():
    assert try_out(make("mlp(hidden=64)").network, SHAPE, "mlp").ghost
    assert try_out(make("cnn").network, SHAPE, "cnn").ghost  # most of its weights are dense
    assert not try_out(make("lenet", shape=(1, 28, 28)).network, (1, 28, 28), "lenet").ghost  # most of its work is not
    assert not try_out(tied(), SHAPE, "tied").ghost
    large = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 256, 3, padding=1), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(256, 3))  # fmt: skip
    assert try_out(large, (1, 32, 32), "large").physical < 64


@pytest.mark.parametrize(
    ("number", "value", "sentence"),
    [
        ("rate", 1.5, r"rate must be in \(0, 1\], got 1.5"),
        ("noise_multiplier", math.inf, "noise_multiplier must be at least 0 and finite"),
        ("steps", 0, "steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(number, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make().fit_private(*images(5), **{**NUMBERS, number: value}, entropy=Recorded())


def test_without_opacus_one_line_says_what_to_install(monkeypatch):
    import fedkd.learner

    monkeypatch.delitem(sys.modules, "fedkd.learner.private_torch")
    monkeypatch.delattr(fedkd.learner, "private_torch")
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ExtraError, match=r"DP-SGD of learner .* needs opacus.* pip install 'fedkd\[torch\]'"):
        make().fit_private(*images(5), **NUMBERS, entropy=Recorded())


DP = {"protect": "dp_sgd(rate=0.5)", "epsilon": 3.0, "expertise": "uniform", "evidence": "none"}


def test_preflight_refuses_what_a_name_does_not_tell(monkeypatch):
    def batch_norm(shape, classes):
        return grouped(nn.BatchNorm2d(8))

    monkeypatch.setattr(sys.modules[__name__], "batch_norm", batch_norm, raising=False)
    config = Config(**DP, learner=f"mlp, {__name__}:batch_norm", student="none", clients=2)
    shared = federation(config.data, config.transfer, config.partition, 2, 0)
    with pytest.raises(PrivacyError, match=r"layer '1' \(BatchNorm2d\) mixes"):
        check_models(config, shared)
    check_models(Config(learner=f"mlp, {__name__}:batch_norm", student="none", clients=2), shared)
    with pytest.raises(SpecError, match="use 'linear' or a network"):
        check_private(make("constant"), "constant", SHAPE)


@pytest.mark.parametrize("learner", ["mlp(hidden=8)", "cnn(width=4, hidden=16), linear"])
def test_a_run_of_private_networks_passes_the_servers_check(learner):
    reports = play(
        "expert", **DP, learner=learner, clients=2, rounds=2, student="mlp", local_epochs=1, distill_epochs=1,
        pooled=False,
    )  # fmt: skip
    assert len(reports) == 2 and np.isfinite(reports[-1].metrics["student"])
    assert all(told["status"] == "answered" for report in reports for told in report.clients.values())
    told = statement(Config(**DP, learner=learner, clients=2, rounds=2, local_epochs=1), 2)
    assert 2.9 < told["epsilon"] <= 3.0 and told["unit"] == "example"
