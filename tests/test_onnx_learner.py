"""ONNX models on a device: features under a head that learns, or black boxes; what is refused, and how it is said."""

from pathlib import Path

import numpy as np
import pytest
from onnx_models import INT64, bands, model, node, value

from fedkd.errors import PrivacyError, SoftLabelError, SpecError
from fedkd.learner import Training, check, check_private, make_learner
from fedkd.learner.onnx_learner import Network
from fedkd.privacy.noise import SystemEntropy
from fedkd.random import generator

VECTORS = Path(__file__).parent / "vectors"
SHAPE, CLASSES = (1, 8, 8), 3
X = np.linspace(0, 1, 5 * 64, dtype=np.float32).reshape(5, *SHAPE)
W = np.arange(64 * 3, dtype=np.float32).reshape(64, 3) / 64


@pytest.fixture
def write(tmp_path):
    def write(content, name="model.onnx"):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def make(path, *, shape=SHAPE, classes=CLASSES, **options):
    spelled = "".join(f", {key}={value!r}" for key, value in options.items())
    spec = f"onnx(path={path!r}{spelled})"
    return make_learner(spec, shape=shape, classes=classes, training=Training(epochs=30), seed=0)


def linear(shape, *, batch="N", weights=W):
    """A network that multiplies the flattened input by ``weights``."""
    nodes = [node("Flatten", ["x"], "flat", axis=1), node("MatMul", ["flat", "w"], "z")]
    return model(nodes, [value("x", (batch, *shape))], [value("z", (batch, weights.shape[1]))], {"w": weights})


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_committed_model_is_what_the_writer_writes():
    assert (VECTORS / "bands.onnx").read_bytes() == bands()


def test_a_black_box_says_the_softmax_of_its_logits_and_learns_nothing(write):
    learner = make(write(linear(SHAPE)), head="none")
    expected = softmax(X.reshape(5, 64) @ W)
    assert learner.predict(X) == pytest.approx(expected, abs=1e-5)
    learner.fit(X, np.zeros(5, np.int64), rng=generator(0, "fit"))
    learner.distill(X, np.eye(3, dtype=np.float32)[[0] * 5], w=np.ones(5, np.float32), rng=generator(0, "distill"))
    assert learner.predict(X) == pytest.approx(expected, abs=1e-5)
    assert learner.parameters == 0
    assert learner.state() == {}
    assert learner.predict(X[:0]).shape == (0, 3)


def test_a_black_box_that_gives_probabilities_is_taken_at_its_word(write):
    nodes = [node("Flatten", ["x"], "f", axis=1), node("MatMul", ["f", "w"], "z"), node("Softmax", ["z"], "p", axis=1)]
    path = write(model(nodes, [value("x", ("N", *SHAPE))], [value("p", ("N", 3))], {"w": W}))
    assert make(path, head="none", scores="probabilities").predict(X) == pytest.approx(softmax(X.reshape(5, 64) @ W))
    logits = make(write(linear(SHAPE)), head="none", scores="probabilities")
    with pytest.raises(SoftLabelError, match="scores='logits'"):
        logits.predict(X)


def test_a_named_output_is_the_one_that_is_read(write):
    path = write(bands())
    hidden, last = Network(path, SHAPE, output="hidden"), Network(path, SHAPE)
    assert "scores" in repr(last)
    assert "hidden" in repr(hidden)
    assert make(path, output="hidden").architecture != make(path).architecture
    with pytest.raises(SpecError, match=r"no output 'score'. Did you mean 'scores'\? It has hidden, scores"):
        make(path, output="score")


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_batches_of_any_size_give_the_same_rows(write, batch):
    """70 rows are more than one batch, and no multiple of a fixed one."""
    x = np.random.default_rng(0).random((70, *SHAPE), np.float32)
    network = Network(write(linear(SHAPE, batch=batch)), SHAPE)
    assert network(x) == pytest.approx(x.reshape(70, 64) @ W, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "wants", "arranged"),
    [
        ((1, 8, 8), (64,), lambda x: x),
        ((1, 8, 8), (8, 8), lambda x: x),
        ((1, 8, 8), (3, 8, 8), lambda x: np.concatenate([x, x, x], axis=1)),
        ((1, 8, 8), (8, 8, 3), lambda x: np.stack([x[:, 0]] * 3, axis=-1)),
        ((3, 4, 5), (4, 5, 3), lambda x: np.transpose(x, (0, 2, 3, 1))),
        ((12,), (12,), lambda x: x),
    ],
)
def test_inputs_are_laid_out_as_the_model_wants_them(write, shape, wants, arranged):
    size = int(np.prod(wants))
    weights = np.random.default_rng(1).random((size, 2), np.float32)
    x = np.random.default_rng(0).random((4, *shape), np.float32)
    network = Network(write(linear(wants, weights=weights)), shape)
    assert network(x) == pytest.approx(arranged(x).reshape(4, size) @ weights, rel=1e-5)


def test_the_head_learns_what_the_network_does_not_know(write):
    """Labels are turned by one class: the network's own scores are always wrong, those of the head right."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.uniform(0, 0.3, (90, *SHAPE)).astype(np.float32)
    for i, label in enumerate(y):
        x[i, :, 2 * label : 2 * label + 2] += 0.6
    path = write(bands())
    assert (make(path, head="none").predict(x).argmax(axis=1) == y).all()
    learner = make(path)
    learner.see(x)
    learner.fit(x[:60], (y[:60] + 1) % 3, rng=generator(0, "fit"))
    assert (learner.predict(x[60:]).argmax(axis=1) == (y[60:] + 1) % 3).all()


def test_dp_sgd_wants_a_network_that_its_owner_calls_public(write):
    path = write(bands())
    fit = {"rate": 1.0, "clip": 1.0, "noise_multiplier": 1.0, "steps": 2, "expected_batch": 5.0, "step": 1.0}
    y = np.zeros(5, np.int64)
    private = make(path)
    with pytest.raises(PrivacyError, match="say public=True"):
        check_private(private, "onnx", SHAPE)
    with pytest.raises(PrivacyError, match="say public=True"):
        private.fit_private(X, y, **fit, entropy=SystemEntropy())
    public = make(path, public=True)
    check_private(public, "onnx", SHAPE)
    event = public.fit_private(X, y, **fit, entropy=SystemEntropy())
    assert (event.noise_multiplier, event.count) == (1.0, 2)
    with pytest.raises(SpecError, match="cannot learn by DP-SGD"):
        check_private(make(path, head="none"), "onnx", SHAPE)


def test_a_network_whose_inputs_see_each_other_hides_no_example(write):
    """Softmax over the batch: what one row gives depends on the others."""
    nodes = [node("Flatten", ["x"], "f", axis=1), node("Softmax", ["f"], "z", axis=0)]
    path = write(model(nodes, [value("x", ("N", *SHAPE))], [value("z", ("N", 64))]))
    with pytest.raises(PrivacyError, match="mixes the inputs of a batch"):
        check_private(make(path, public=True), "onnx", SHAPE)


def test_what_cannot_be_used_is_said_in_one_line(write, tmp_path):
    with pytest.raises(SpecError, match="cannot read .*nowhere.onnx: No such file"):
        make(str(tmp_path / "nowhere.onnx"))
    with pytest.raises(SpecError, match="is no ONNX model that can be run") as told:
        make(write(b"not a model"))
    assert "\n" not in str(told.value)
    with pytest.raises(SpecError, match=r"takes inputs \(1, 8, 8\), the transfer set has \(1, 28, 28\)"):
        make(write(bands()), shape=(1, 28, 28))
    with pytest.raises(SpecError, match="has 3 scores an input, the transfer set 10 classes"):
        make(write(bands()), classes=10, head="none")
    counts = model([node("Cast", ["x"], "z", to=INT64)], [value("x", ("N", 4))], [value("z", ("N", 4), INT64)])
    with pytest.raises(SpecError, match=r"must be a float, got tensor\(int64\)"):
        make(write(counts), shape=(4,))
    two = model([node("Add", ["x", "y"], "z")], [value(n, ("N", 4)) for n in "xy"], [value("z", ("N", 4))])
    with pytest.raises(SpecError, match="must have one input, a batch of floats, got x .*, y"):
        make(write(two), shape=(4,))
    total = model([node("ReduceSum", ["x"], "z", keepdims=0)], [value("x", ("N", 4))], [value("z", ())])
    with pytest.raises(SpecError, match="must have a row for each input"):
        make(write(total), shape=(4,))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("head='sofmax'", "'head' must be softmax or none, got 'sofmax'. Did you mean 'softmax'"),
        ("head='none', scores='logit'", "'scores' must be logits or probabilities, got 'logit'. Did you mean 'logits'"),
        ("dimensions=0", "'dimensions' must be at least 1"),
    ],
)
def test_an_option_that_is_none_is_refused(option, said):
    spec = f"onnx(path={str(VECTORS / 'bands.onnx')!r}, {option})"
    with pytest.raises(SpecError, match=said):
        make_learner(spec, shape=SHAPE, classes=3, training=Training(), seed=0)


def test_a_configuration_is_checked_without_looking_for_the_file():
    check("onnx:/data/only/on/the/device.onnx")
    with pytest.raises(SpecError, match="needs 'path'"):
        check("onnx")
