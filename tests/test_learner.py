"""Learners: laws for every registered one, and what a user may bring."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd.errors import FedkdError, SpecError
from fedkd.learner import Training, check, check_mix, check_student, learner, make_learner, set_threads
from fedkd.random import generator

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 3
TRAINING = Training(epochs=30, distill_epochs=30, batch_size=16, learning_rate=1e-2)
SPECS = {
    "cnn": ("cnn(width=4)", (1, 8, 8)),
    "lenet": ("lenet", (1, 16, 16)),
    "mlp": ("mlp(hidden=16)", (1, 8, 8)),
    "torchvision": ("torchvision(name='squeezenet1_1', size=32)", (1, 8, 8)),
    "forest": ("forest(trees=20)", (1, 8, 8)),
    "logistic": ("logistic", (1, 8, 8)),
    "boosting": ("boosting(iterations=5)", (1, 8, 8)),
    "constant": ("constant", (1, 8, 8)),
}
SLOW_TO_LEARN = {"constant", "torchvision"}  # the first never looks at the input, the second needs more than a test has


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    set_threads(1)


def images(n, shape, seed=0, labels=None):
    """Bright rows at a height that tells the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n) if labels is None else np.asarray(labels)
    x = rng.uniform(0, 0.3, (len(y), *shape)).astype(np.float32)
    third = shape[1] // CLASSES
    for i, label in enumerate(y):
        x[i, :, label * third : (label + 1) * third] += 0.6
    return x, y.astype(np.int64)


def make(name, *, seed=1, training=None):
    spec, shape = SPECS[name]
    few = Training(epochs=1, distill_epochs=1) if name == "torchvision" else TRAINING
    return make_learner(spec, shape=shape, classes=CLASSES, training=training or few, seed=seed), shape


def one_hot(y):
    return np.eye(CLASSES, dtype=np.float32)[y]


def test_every_registered_learner_has_its_laws_tested():
    assert set(SPECS) == set(learner.names())


@pytest.mark.parametrize("name", learner.names())
def test_predictions_are_distributions_and_inputs_stay_as_they_were(name):
    model, shape = make(name)
    x, y = images(24, shape)
    before = x.copy(), y.copy()
    model.fit(x, y, rng=generator(0, "fit"))
    p = model.predict(x)
    assert p.dtype == np.float32
    assert p.shape == (24, CLASSES)
    assert (p >= 0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(24), abs=1e-5)
    assert (x == before[0]).all()
    assert (y == before[1]).all()


@pytest.mark.parametrize("name", sorted(set(learner.names()) - SLOW_TO_LEARN))
def test_fit_learns_what_can_be_learned(name):
    model, shape = make(name)
    model.fit(*images(90, shape), rng=generator(0, "fit"))
    x, y = images(60, shape, seed=1)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9


@pytest.mark.parametrize("name", sorted(set(learner.names()) - SLOW_TO_LEARN))
def test_distill_alone_makes_a_student_and_rows_of_weight_zero_teach_nothing(name):
    model, shape = make(name)
    x, y = images(90, shape)
    lies = one_hot((y + 1) % CLASSES)
    p, w = np.concatenate([one_hot(y), lies]), np.repeat([1.0, 0.0], 90).astype(np.float32)
    model.distill(np.concatenate([x, x]), p, w=w, rng=generator(0, "distill"))
    new, truth = images(60, shape, seed=1)
    assert (model.predict(new).argmax(axis=1) == truth).mean() > 0.9


@pytest.mark.parametrize("name", learner.names())
def test_equal_seeds_give_equal_bytes(name):
    made = []
    for _ in range(2):
        model, shape = make(name)
        x, y = images(24, shape)
        model.fit(x, y, rng=generator(0, "fit"))
        model.distill(x, one_hot(y), w=np.ones(24, np.float32), rng=generator(0, "distill"))
        made.append(model.predict(x).tobytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("name", learner.names())
def test_a_saved_state_predicts_and_goes_on_the_same(name):
    model, shape = make(name)
    x, y = images(24, shape)
    model.fit(x, y, rng=generator(0, "fit"))
    state = model.state()
    if not state:
        return  # such a learner is made anew in each round, and says so by having nothing to save
    other, _ = make(name, seed=2)
    other.load({key: value.copy() for key, value in state.items()})
    assert other.predict(x).tobytes() == model.predict(x).tobytes()
    for one in (model, other):
        one.fit(x, y, rng=generator(1, "fit"))
    assert other.predict(x).tobytes() == model.predict(x).tobytes()


@pytest.mark.parametrize("name", ["cnn", "mlp", "lenet"])
def test_a_network_starts_from_its_seed_and_leaves_the_global_generator_alone(name):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, shape = make(name, seed=1)
    first.fit(*images(20, shape), rng=generator(0, "fit"))
    assert torch.equal(torch.rand(3), expected)
    again, _ = make(name, seed=1)
    other, _ = make(name, seed=2)
    fresh, _ = make(name, seed=1)
    key = next(iter(again.state()))
    assert (again.state()[key] == fresh.state()[key]).all()
    assert not (again.state()[key] == other.state()[key]).all()


@pytest.mark.parametrize("name", ["forest", "logistic", "boosting"])
def test_a_client_with_one_class_predicts_that_class(name):
    model, shape = make(name)
    model.fit(*images(10, shape, labels=[2] * 10), rng=generator(0, "fit"))
    assert model.predict(images(4, shape)[0]).tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize("name", ["forest", "logistic", "boosting"])
def test_what_came_back_completes_what_a_client_has_seen(name):
    model, shape = make(name)
    public, truth = images(60, shape, seed=2)
    model.distill(public, one_hot(truth), w=np.ones(60, np.float32), rng=generator(0, "feedback"))
    model.fit(*images(30, shape, labels=[0, 1] * 15), rng=generator(0, "fit"))
    x, y = images(30, shape, seed=3, labels=[2] * 30)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9


def test_our_adam_is_torchs():
    import torch

    from fedkd.torch_learner import Adam

    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(8, 4)
    for network, optimizer in (
        (ours, Adam(ours.parameters(), 0.01)),
        (theirs, torch.optim.Adam(theirs.parameters(), 0.01)),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            network(x).pow(2).sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_a_network_does_not_load_torchs_compiler():
    code = (
        "import sys, numpy as np\nfrom fedkd.learner import Training, make_learner\n"
        "m = make_learner('mlp', shape=(4,), classes=2, training=Training(epochs=1), seed=0)\n"
        "m.fit(np.zeros((4, 4), 'f4'), np.array([0, 1, 0, 1]), rng=np.random.default_rng(0))\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_small_network_of_selective_fd_has_its_published_size():
    model = make_learner("lenet", shape=(1, 28, 28), classes=10, training=TRAINING, seed=0)
    assert model.parameters == 21_840


def test_learners_of_one_shape_share_an_architecture_and_others_do_not():
    names = [make(name)[0].architecture for name in ("cnn", "cnn", "mlp")]
    assert names[0] == names[1] != names[2]


def test_a_batch_of_one_does_not_break_batch_normalization():
    few = Training(epochs=1, batch_size=4)
    model = make_learner("torchvision(name='resnet18', size=32)", shape=(1, 8, 8), classes=3, training=few, seed=0)
    model.fit(*images(5, (1, 8, 8)), rng=generator(0, "fit"))
    assert np.isfinite(model.predict(images(2, (1, 8, 8))[0])).all()


def test_divergence_is_a_clear_error():
    wild = Training(epochs=5, learning_rate=1e30)
    model = make_learner("mlp", shape=(1, 8, 8), classes=3, training=wild, seed=0)
    with pytest.raises(FedkdError, match=r"training of mlp\(hidden=64\) diverged.*lower learning_rate"):
        model.fit(*images(40, (1, 8, 8)), rng=generator(0, "fit"))


@pytest.mark.parametrize(
    ("spec", "shape", "sentence"),
    [
        ("cnn", (5,), "needs images"),
        ("lenet", (1, 8, 8), "at least 16x16"),
        ("torchvision(name='resnet1')", (3, 32, 32), "no classifier 'resnet1'. Did you mean 'resnet1"),
        ("nowhere:make", (5,), "no module named 'nowhere'"),
        ("json:no_such", (5,), "json has no function 'no_such'"),
        ("math:sqrt", (5,), "has no predict"),
    ],
)
def test_a_learner_that_cannot_be_made_says_why(spec, shape, sentence, monkeypatch):
    import math

    monkeypatch.setattr(math, "sqrt", lambda classes: object())
    with pytest.raises(SpecError) as caught:
        make_learner(spec, shape=shape, classes=3, training=TRAINING, seed=0)
    assert sentence in str(caught.value)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that writes a user's module ``mine`` and makes its learner."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(text, factory="make"):
        (tmp_path / "mine.py").write_text(text)
        return make_learner(f"mine:{factory}", shape=(1, 8, 8), classes=CLASSES, training=TRAINING, seed=3)

    yield write
    sys.modules.pop("mine", None)


def test_a_users_torch_module_is_trained_like_ours(own):
    model = own(
        "from torch import nn\nimport math\ndef make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
    )
    model.fit(*images(90, (1, 8, 8)), rng=generator(0, "fit"))
    x, y = images(60, (1, 8, 8), seed=1)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9
    assert model.parameters == 64 * 3 + 3


def test_a_users_estimator_is_fitted_like_ours(own):
    model = own("from sklearn.naive_bayes import GaussianNB\ndef make():\n    return GaussianNB()\n")
    model.fit(*images(30, (1, 8, 8), labels=[0, 2] * 15), rng=generator(0, "fit"))
    assert model.predict(images(4, (1, 8, 8))[0]).shape == (4, CLASSES)


def test_a_users_object_needs_predict_only(own):
    model = own(
        "import numpy as np\nclass Box:\n    def predict(self, x):\n        return np.full((len(x), 3), 1 / 3)\n"
        "def make():\n    return Box()\n"
    )
    x, y = images(5, (1, 8, 8))
    model.fit(x, y, rng=generator(0, "fit"))
    model.distill(x, one_hot(y), w=np.ones(5), rng=generator(0, "distill"))
    assert model.predict(x).shape == (5, 3)
    assert model.state() == {}


def test_a_users_object_gets_randomness_and_state_where_it_asks(own):
    model = own(
        "import numpy as np\nclass Box:\n    def fit(self, x, y, rng):\n        self.drawn = rng.random(2)\n"
        "    def predict(self, x):\n        return np.tile([1.0, 0, 0], (len(x), 1))\n"
        "    def state(self):\n        return {'drawn': self.drawn}\n"
        "    def load(self, state):\n        self.drawn = state['drawn']\n"
        "def make(seed):\n    assert seed == 3\n    return Box()\n"
    )
    model.fit(*images(5, (1, 8, 8)), rng=generator(0, "fit"))
    assert (model.state()["drawn"] == generator(0, "fit").random(2)).all()


def test_a_mix_is_checked_member_by_member_without_importing_a_framework():
    check_mix("cnn(width=4), mlp, site.model:make")
    with pytest.raises(SpecError, match="Did you mean 'forest'"):
        check_mix("cnn, forrest")
    check_student("none")
    check("some.module:factory")
    with pytest.raises(SpecError):
        check("none")
