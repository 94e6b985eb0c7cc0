"""Learners: laws for every registered one, and what a user may bring."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from http_scene import Service
from learner_scene import CLASSES, ROOT, TRAINING, images, one_hot

from fedkd.errors import CheckpointError, ConfigError, ExtraError, FedkdError, SpecError
from fedkd.learner import Training, check, check_mix, check_student, learner, make_learner, set_threads
from fedkd.random import generator

SPECS = {
    "cnn": ("cnn(width=4)", (1, 8, 8)),
    "lenet": ("lenet", (1, 16, 16)),
    "mlp": ("mlp(hidden=16)", (1, 8, 8)),
    "torchvision": ("torchvision(name='squeezenet1_1', size=32)", (1, 8, 8)),
    "forest": ("forest(trees=20)", (1, 8, 8)),
    "logistic": ("logistic", (1, 8, 8)),
    "boosting": ("boosting(iterations=5)", (1, 8, 8)),
    "linear": ("linear", (1, 8, 8)),
    "onnx": (f"onnx(path={str(ROOT / 'tests' / 'vectors' / 'bands.onnx')!r})", (1, 8, 8)),
    "http": ("http", (1, 8, 8)),  # with the address of a service, once it is there
    "constant": ("constant", (1, 8, 8)),
}
FINISHED = {"http"}  # learns nothing
SLOW_TO_LEARN = {"constant", "torchvision"}  # the first never looks at the input, the second needs more than a test has
LEARNERS = sorted(set(learner.names()) - FINISHED)


@pytest.fixture(scope="module", autouse=True)
def _service():
    def unsure(body):
        count = body["inputs"][0]["shape"][0]
        return 200, {"outputs": [{"name": "p", "data": [1 / CLASSES] * CLASSES * count}]}

    with Service(unsure) as service:
        SPECS["http"] = (f"http(url={service.url!r})", (1, 8, 8))
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    set_threads(1)


def make(name, *, seed=1, training=None):
    spec, shape = SPECS[name]
    few = Training(epochs=1, distill_epochs=1) if name == "torchvision" else TRAINING
    return make_learner(spec, shape=shape, classes=CLASSES, training=training or few, seed=seed), shape


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


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - SLOW_TO_LEARN))
def test_fit_learns_what_can_be_learned(name):
    model, shape = make(name)
    model.fit(*images(90, shape), rng=generator(0, "fit"))
    x, y = images(60, shape, seed=1)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - SLOW_TO_LEARN))
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

    from fedkd.learner.torch_learner import Adam

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


def torch_learner(shape=(1, 8, 8), *, training=TRAINING, **options):
    from fedkd.learner import models
    from fedkd.learner.models import seeded
    from fedkd.learner.torch_learner import TorchLearner

    network = seeded(1, lambda: models.mlp(shape, CLASSES, hidden=16))
    return TorchLearner(network, replace(training, **options), "mlp")


@pytest.mark.parametrize("augment", ["shift(pixels=1)", "flip | shift(pixels=1)"])
def test_a_network_learns_from_views_of_its_inputs(augment):
    x, y = images(90, (1, 8, 8))
    new, truth = images(60, (1, 8, 8), seed=1)
    before = x.copy()
    model = torch_learner(augment=augment)
    model.fit(x, y, rng=generator(0, "fit"))
    assert (model.predict(new).argmax(axis=1) == truth).mean() > 0.9
    model = torch_learner(augment=augment)
    p, w = one_hot(y), np.repeat([1.0, 0.0], 45).astype(np.float32)
    p[45:] = np.nan
    model.distill(x, p, w=w, rng=generator(0, "distill"))
    assert (model.predict(new).argmax(axis=1) == truth).mean() > 0.9
    assert (x == before).all()


def test_views_are_drawn_from_the_stream_that_is_given():
    x, y = images(40, (1, 8, 8))
    made = []
    for name, augment in (("a", "shift"), ("a", "shift"), ("b", "shift"), ("a", "none")):
        model = torch_learner(augment=augment)
        model.fit(x, y, rng=generator(0, name))
        made.append(model.predict(x).tobytes())
    assert made[0] == made[1]
    assert len(set(made)) == 3


def test_a_constant_schedule_changes_nothing_and_a_falling_one_takes_smaller_steps():
    import torch

    x, y = images(32, (1, 8, 8))
    one = Training(epochs=1, batch_size=32, learning_rate=1e-2)  # a single step, at the start: no schedule has begun
    many = Training(epochs=50, batch_size=32, learning_rate=1e-2)
    moved = {}
    for name, training in (("one", one), ("many", many)):
        for schedule in ("constant", "linear", "cosine"):
            model = torch_learner(training=training, schedule=schedule)
            start = torch.cat([p.detach().clone().flatten() for p in model.network.parameters()])
            model.fit(x, y, rng=generator(0, "fit"))
            end = torch.cat([p.detach().flatten() for p in model.network.parameters()])
            moved[name, schedule] = float((end - start).abs().sum())
    assert moved["one", "constant"] == moved["one", "linear"] == moved["one", "cosine"]
    assert moved["many", "linear"] < 0.9 * moved["many", "constant"]
    assert moved["many", "cosine"] < 0.9 * moved["many", "constant"]


def test_an_unknown_view_or_schedule_is_refused_when_the_learner_is_made():
    with pytest.raises(SpecError, match="unknown augmentation 'shfit'. Did you mean 'shift'"):
        torch_learner(augment="shfit")
    with pytest.raises(SpecError, match="unknown schedule"):
        torch_learner(schedule="cosinus")


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


def test_a_mix_is_checked_member_by_member_without_importing_a_framework():
    check_mix("cnn(width=4), mlp, site.model:make")
    with pytest.raises(SpecError, match="Did you mean 'forest'"):
        check_mix("cnn, forrest")
    check_student("none")
    check("some.module:factory")
    with pytest.raises(SpecError):
        check("none")


@pytest.mark.parametrize("name", learner.names())
def test_arrays_that_may_not_be_written_can_be_learned(name):
    model, shape = make(name)
    x, y = images(12, shape)
    p, w = one_hot(y), np.ones(12, np.float32)
    for array in (x, y, p, w):
        array.flags.writeable = False  # as are those out of a frame
    model.distill(x, p, w=w, rng=generator(0, "distill"))
    model.fit(x, y, rng=generator(0, "fit"))
    assert np.isfinite(model.predict(x)).all()


@pytest.mark.parametrize("name", learner.names())
def test_a_row_of_weight_zero_is_never_read(name):
    taught = []
    for junk in (0.25, np.nan):
        model, shape = make(name)
        x, y = images(24, shape)
        p, w = one_hot(y), np.ones(24, np.float32)
        p[12:], w[12:] = junk, 0
        model.distill(x, p, w=w, rng=generator(0, "distill"))
        taught.append(model.predict(x))
    assert np.isfinite(taught[0]).all()
    assert (taught[0] == taught[1]).all()


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - {"constant"}))
def test_only_the_ratio_of_weights_counts(name):
    taught = []
    for scale in (1.0, 2.0**-20):
        model, shape = make(name)
        x, y = images(24, shape)
        model.distill(x, one_hot(y), w=np.repeat([scale, 3 * scale], 12), rng=generator(0, "distill"))
        taught.append(model.predict(x))
    assert (taught[0] == taught[1]).all()


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - {"torchvision"}))
def test_distill_moves_predictions_toward_the_teacher(name):
    model, shape = make(name)
    x, y = images(60, shape)
    model.fit(x, y, rng=generator(0, "fit"))
    teacher = one_hot(np.full(60, 2))
    before = np.abs(model.predict(x) - teacher).sum()
    model.distill(x, teacher, w=np.ones(60, np.float32), rng=generator(0, "distill"))
    assert np.abs(model.predict(x) - teacher).sum() < 0.8 * before


@pytest.mark.parametrize("name", learner.names())
def test_no_data_changes_nothing_and_no_rows_have_no_predictions(name):
    model, shape = make(name)
    x, y = images(12, shape)
    model.distill(x, one_hot(y), w=np.ones(12, np.float32), rng=generator(0, "distill"))
    before = model.predict(x)
    model.fit(x[:0], y[:0], rng=generator(0, "fit"))
    model.distill(x, one_hot(y), w=np.zeros(12, np.float32), rng=generator(0, "distill"))
    assert (model.predict(x) == before).all()
    assert model.predict(x[:0]).shape == (0, CLASSES)


def test_feedback_of_weight_zero_leaves_a_forest_with_its_private_data():
    x, y = images(30, (1, 8, 8))
    lies = one_hot((y + 1) % CLASSES)
    predicted = []
    for taught in (False, True):
        model = make_learner("forest(trees=5, pseudo=0)", shape=(1, 8, 8), classes=3, training=TRAINING, seed=0)
        if taught:
            model.distill(x, lies, w=np.ones(30), rng=generator(0, "feedback"))
        model.fit(x, y, rng=generator(0, "fit"))
        predicted.append(model.predict(x))
    assert (predicted[0] == predicted[1]).all()


def test_dropout_draws_from_the_stream_it_is_given():
    x, y = images(20, (1, 16, 16))
    made = []
    for name in ("a", "a", "b"):
        model = make_learner("lenet(dropout=0.5)", shape=(1, 16, 16), classes=3, training=TRAINING, seed=0)
        model.fit(x, y, rng=generator(0, name))
        made.append(model.predict(x).tobytes())
    assert made[0] == made[1] != made[2]


def test_a_state_of_another_network_is_refused_in_one_line():
    model, _ = make("mlp")
    before = model.state()
    with pytest.raises(CheckpointError, match=r"not one of mlp\(hidden=16\)") as caught:
        model.load(make("cnn")[0].state())
    assert "\n" not in str(caught.value)
    assert all((before[key] == value).all() for key, value in model.state().items())


def test_a_device_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("FEDKD_DEVICE", "abacus")
    with pytest.raises(ConfigError, match="FEDKD_DEVICE: cannot use 'abacus'"):
        make("mlp")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("cnn(width=0)", "'width' must be at least 1, got 0"),
        ("mlp(hidden=0)", "'hidden' must be at least 1"),
        ("lenet(dropout=1.0)", r"'dropout' must be in \[0, 1\)"),
        ("torchvision(size=-1)", "'size' must be at least 0"),
        ("forest(trees=0)", "'trees' must be at least 1"),
        ("forest(pseudo=-0.5)", "'pseudo' must be at least 0"),
        ("logistic(penalty=0.0)", "'penalty' must be above 0"),
        ("linear(dimensions=0)", "'dimensions' must be at least 1"),
        ("linear(temperature=0.0)", "'temperature' must be above 0"),
        ("boosting(iterations=0)", "'iterations' must be at least 1"),
    ],
)
def test_an_option_out_of_range_is_refused_when_checked_and_when_made(spec, sentence):
    with pytest.raises(SpecError, match=sentence):
        check(spec)
    with pytest.raises(SpecError, match=sentence):
        make_learner(spec, shape=(1, 16, 16), classes=3, training=TRAINING, seed=0)


def test_checking_a_mix_loads_neither_a_framework_nor_the_users_module():
    code = (
        "import sys\nfrom fedkd.learner import check_mix\n"
        "check_mix('cnn, forest, torchvision, no_such_module:make')\n"
        "print(sorted({'torch', 'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("spec", "missing", "extra"), [("mlp", "torch", "torch"), ("forest", "sklearn", "light")])
def test_a_missing_framework_names_the_line_that_installs_it(spec, missing, extra, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    for name in ("models", "torch_learner", "sklearn_learner"):
        monkeypatch.delitem(sys.modules, f"fedkd.learner.{name}", raising=False)
        monkeypatch.delattr(f"fedkd.learner.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExtraError, match=rf"pip install 'fedkd\[{extra}\]'"):
        make_learner(spec, shape=(4,), classes=2, training=TRAINING, seed=0)
