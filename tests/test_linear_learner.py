"""The linear private learner: what it clips, the noise it adds, and what it says that it did."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from fedkd.errors import CheckpointError, ConfigError, PrivacyError, SpecError
from fedkd.events import SampledGaussian
from fedkd.learner import Training, linear_learner, make_learner
from fedkd.learner.linear_learner import clipped_sum
from fedkd.privacy.noise import SeededEntropy, SystemEntropy
from fedkd.random import generator

TRAINING = Training(epochs=30, distill_epochs=30)
NUMBERS = {"rate": 0.5, "clip": 1.0, "noise_multiplier": 1.0, "steps": 3, "expected_batch": 20.0}


class Recorded:
    """An entropy that keeps what it gave; normals can be made all zero."""

    private = False

    def __init__(self, seed=0, *, scale=1.0):
        self.seeded, self.scale, self.drawn, self.tossed = SeededEntropy(generator(seed, "noise")), scale, [], []

    def words(self, count):
        return self.seeded.words(count)

    def normals(self, shape):
        self.drawn.append(self.seeded.normals(shape))
        return self.scale * self.drawn[-1]

    def coins(self, count, rate):
        self.tossed.append((count, rate))
        return self.seeded.coins(count, rate)


def make(spec="linear", *, classes=3, shape=(6,), training=TRAINING):
    return make_learner(spec, shape=shape, classes=classes, training=training, seed=0)


def blobs(n, seed=0, spread=0.3):
    """Return inputs (n, 6) around three corners, and which corner."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (2 * np.eye(6)[y] + spread * rng.standard_normal((n, 6))).astype(np.float32), y


def seen(spec="linear(dimensions=4)"):
    model = make(spec)
    model.see(blobs(300, seed=9)[0])
    return model


def test_one_step_by_hand():
    """Two examples, three classes, no noise: from uniform opinions each gradient is v (1/3 - y), of norm sqrt(2/3)."""
    model = make(shape=(2,))
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 2])
    v = np.array([[1, 0, 1 / 3], [0, 1, 1 / 3]]) / math.sqrt(10 / 9)
    error = np.array([[-2, 1, 1], [1, 1, -2]]) / 3
    for clip, shrink in ((10.0, 1.0), (0.4, 0.4 / math.sqrt(2 / 3))):
        model = make(shape=(2,))
        event = model.fit_private(
            x, y, rate=1.0, clip=clip, noise_multiplier=0.0, steps=1, expected_batch=4.0, entropy=Recorded(), step=0.5
        )
        assert model.weights == pytest.approx(-0.5 * 3 / 4 * shrink * v.T @ error, abs=1e-5)
        assert event == SampledGaussian(1.0, 0.0, 1)
    assert model.predict(x).argmax(axis=1).tolist() == [0, 2]


def loss(weights, row, label):
    z = row @ weights
    return np.log(np.exp(z).sum()) - z[label]


def finite_differences(weights, row, label, h=1e-5):
    gradient = np.zeros_like(weights)
    for at in np.ndindex(*weights.shape):
        up, down = weights.copy(), weights.copy()
        up[at] += h
        down[at] -= h
        gradient[at] = (loss(up, row, label) - loss(down, row, label)) / (2 * h)
    return gradient


@pytest.mark.parametrize("clip", [0.1, 1.0, 3.0, 100.0])
def test_the_closed_form_is_the_sum_of_clipped_gradients_of_each_example(clip):
    rng = np.random.default_rng(0)
    v, y, weights = rng.standard_normal((20, 5)), rng.integers(0, 3, 20), rng.standard_normal((5, 3))
    total = np.zeros((5, 3))
    for row, label in zip(v, y, strict=True):
        gradient = finite_differences(weights, row, label)
        total += gradient * min(1, clip / np.linalg.norm(gradient))
    assert clipped_sum(v, y, weights, clip) == pytest.approx(total, abs=1e-5 * max(1, clip / 3))


@pytest.mark.parametrize("clip", [0.05, 0.7])
def test_one_example_more_moves_the_sum_by_no_more_than_the_clip(clip):
    rng = np.random.default_rng(1)
    v, y = (1e3 * rng.standard_normal((50, 5))).astype(np.float32), rng.integers(0, 3, 50)
    weights = rng.standard_normal((5, 3)).astype(np.float32)
    for one in range(50):
        assert np.linalg.norm(clipped_sum(v[one : one + 1], y[one : one + 1], weights, clip)) <= clip


def test_rows_have_length_one_with_and_without_public_inputs():
    x = 100 * blobs(40)[0]
    for model in (make(), seen()):
        assert np.linalg.norm(model.rows(x), axis=1) == pytest.approx(np.ones(40), abs=1e-5)


def noise_of(entropy, *, clip=0.5, noise_multiplier=2.0):
    """Return what noise a step of a client without data added, recovered from its weights."""
    model = make(classes=10, shape=(999,), training=TRAINING)
    model.fit_private(
        np.zeros((0, 999), np.float32), np.zeros(0, np.int64), rate=1.0, clip=clip, noise_multiplier=noise_multiplier,
        steps=1, expected_batch=10.0, entropy=entropy, step=1.0,
    )  # fmt: skip
    return -model.weights  # the step is 1, 10 classes, a batch of 10


def test_noise_is_the_multiplier_times_the_clip_and_nothing_near_it():
    z = noise_of(SystemEntropy())
    measured = z.std()
    band = 5 / math.sqrt(2 * z.size)
    assert measured == pytest.approx(1.0, rel=band)
    for mutant in (1 / math.sqrt(2), 2.0):
        wrong = noise_of(SystemEntropy(), noise_multiplier=2.0 * mutant).std()
        assert wrong != pytest.approx(1.0, rel=band)
        assert wrong == pytest.approx(mutant, rel=band)


def test_every_step_draws_new_noise_and_new_coins_and_counts():
    entropy = Recorded()
    x, y = blobs(40)
    event = make().fit_private(x, y, **NUMBERS, entropy=entropy)
    assert event == SampledGaussian(rate=0.5, noise_multiplier=1.0, count=3)
    assert entropy.tossed == [(40, 0.5)] * 3
    assert len(entropy.drawn) == 3
    assert not (entropy.drawn[0] == entropy.drawn[1]).any()


def test_batches_are_poisson(monkeypatch):
    sizes = []
    whole = linear_learner.clipped_sum
    monkeypatch.setattr(linear_learner, "clipped_sum", lambda v, *rest: (sizes.append(len(v)), whole(v, *rest))[1])
    x, y = blobs(100)
    make().fit_private(x, y, **{**NUMBERS, "rate": 0.2, "steps": 400}, entropy=SystemEntropy())
    assert np.mean(sizes) == pytest.approx(20, abs=5 * 4 / math.sqrt(400))
    assert np.std(sizes) == pytest.approx(4, rel=0.2)  # a fixed size would have none


def test_a_step_in_which_nobody_takes_part_is_one():
    x, y = blobs(5)
    model = make()
    event = model.fit_private(x, y, **{**NUMBERS, "rate": 1e-9, "steps": 4}, entropy=SystemEntropy())
    assert event.count == 4
    assert np.abs(model.weights).min() > 0  # noise all the same


def test_a_client_without_data_spends_and_answers_like_any_other():
    model = seen()
    event = model.fit_private(np.zeros((0, 6), np.float32), np.zeros(0, np.int64), **NUMBERS, entropy=SystemEntropy())
    assert event == SampledGaussian(0.5, 1.0, 3)
    assert model.predict(blobs(4)[0]).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_the_step_does_not_depend_on_how_many_examples_there_are():
    """With neighbors that add or remove one, a divisor that counts them would be a leak."""
    x, y = blobs(40)
    moved = []
    for rows in (20, 40):
        model = make()
        numbers = {**NUMBERS, "rate": 1.0, "noise_multiplier": 0.0, "steps": 1}
        model.fit_private(np.repeat(x[:1], rows, 0), np.repeat(y[:1], rows), **numbers, entropy=Recorded())
        moved.append(np.linalg.norm(model.weights))
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-4)


def test_two_clients_that_start_alike_have_different_noise():
    x, y = blobs(40)
    made = []
    for _ in range(2):
        model = make()
        model.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())
        made.append(model.weights)
    assert not (made[0] == made[1]).any()


def test_equal_entropy_gives_equal_models():
    x, y = blobs(40)
    made = []
    for _ in range(2):
        model = seen()
        model.fit_private(x, y, **NUMBERS, entropy=Recorded(3))
        made.append(model.weights.tobytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("steps", [1, 4])
def test_with_little_noise_it_learns(steps):
    model = seen()
    x, y = blobs(600)
    model.fit_private(
        x, y, rate=1.0, clip=1.0, noise_multiplier=1.0, steps=steps, expected_batch=600.0, entropy=Recorded()
    )
    new, truth = blobs(200, seed=1)
    assert (model.predict(new).argmax(axis=1) == truth).mean() > 0.97


def test_public_inputs_alone_decide_where_it_works():
    one, two = seen(), make("linear(dimensions=4)")
    assert one.weights.shape == (5, 3)
    two.see(blobs(300, seed=8)[0])
    assert not np.allclose(one.space.basis, two.space.basis)
    x, y = blobs(50)
    before = one.space.basis.tobytes(), one.space.moments.tobytes()
    one.fit_private(x, y, **NUMBERS, entropy=Recorded())
    one.distill(x, np.eye(3)[y], w=np.ones(50), rng=generator(0))
    assert (one.space.basis.tobytes(), one.space.moments.tobytes()) == before


def test_seeing_the_same_again_keeps_what_was_learned_and_other_inputs_start_anew():
    model = seen()
    x, y = blobs(60)
    model.distill(x, np.eye(3, dtype=np.float32)[y], w=np.ones(60), rng=generator(0))
    learned = model.weights.copy()
    model.see(blobs(300, seed=9)[0])
    assert (model.weights == learned).all()
    model.see(blobs(300, seed=7)[0])
    assert (model.weights == 0).all()


def test_directions_are_whitened():
    public = blobs(3000, seed=9)[0] * np.array([100, 1, 1, 1, 1, 0.1], np.float32)
    model = make("linear(dimensions=5)")
    model.see(public)
    z = (model.features(public) - model.space.center) @ model.space.basis
    assert z.T @ z / len(z) == pytest.approx(np.eye(5) / 5, abs=2e-3)


def test_a_student_that_sees_what_its_teacher_saw_becomes_its_teacher():
    teacher, student = seen(), seen()
    x, y = blobs(300)
    teacher.fit_private(
        x, y, rate=1.0, clip=1.0, noise_multiplier=5.0, steps=1, expected_batch=300.0, entropy=Recorded()
    )
    public = blobs(300, seed=9)[0]
    student.training = Training(distill_epochs=500)
    student.distill(public, teacher.predict(public), w=np.ones(300), rng=generator(0))
    assert student.predict(x) == pytest.approx(teacher.predict(x), abs=0.02)


def test_temperature_softens_and_never_reorders():
    x, y = blobs(60)
    plain, soft = make(), make("linear(temperature=10.0)")
    for model in (plain, soft):
        model.distill(x, np.eye(3)[y], w=np.ones(60), rng=generator(0))
    assert soft.predict(x).max() < plain.predict(x).max()
    assert (soft.predict(x).argmax(axis=1) == plain.predict(x).argmax(axis=1)).all()
    p = plain.predict(x).astype(np.float64) ** 0.1
    assert soft.predict(x) == pytest.approx(p / p.sum(axis=1, keepdims=True), abs=1e-5)


def test_what_was_learned_without_noise_cannot_become_private():
    x, y = blobs(40)
    model = seen()
    model.fit(x, y, rng=generator(0))
    again = seen()
    again.load(model.state())
    for one in (model, again):
        with pytest.raises(PrivacyError, match="learned private data without noise"):
            one.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())


def test_a_state_goes_round_with_its_space():
    model, other = seen(), make("linear(dimensions=4)")
    x, y = blobs(40)
    model.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())
    other.load({key: value.copy() for key, value in model.state().items()})
    assert other.predict(x).tobytes() == model.predict(x).tobytes()
    other.fit_private(x, y, **NUMBERS, entropy=SystemEntropy())
    other.load({})
    with pytest.raises(CheckpointError, match="not one of linear"):
        other.load({"weights": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("number", "value", "sentence"),
    [
        ("rate", 0.0, r"rate must be in \(0, 1\], got 0.0"),
        ("rate", 1.5, "rate must be"),
        ("clip", 0.0, "clip must be above 0"),
        ("clip", math.nan, "clip must be above 0"),
        ("noise_multiplier", -1.0, "noise_multiplier must be at least 0"),
        ("noise_multiplier", math.inf, "noise_multiplier must be at least 0 and finite"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("expected_batch", 0.0, "expected_batch must be above 0"),
        ("step", -1.0, "step must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_drawn(number, value, sentence):
    entropy = Recorded()
    with pytest.raises(ConfigError, match=sentence):
        make().fit_private(*blobs(5), **{**NUMBERS, number: value}, entropy=entropy)
    assert not entropy.drawn


def test_images_have_shapes_or_scattering_and_other_inputs_are_taken_as_they_are():
    assert make(shape=(1, 12, 12)).weights.shape == (1 + 25 * 32, 3)
    assert make("linear(features='scattering')", shape=(1, 12, 12)).weights.shape == (1 + 81 * 9, 3)
    assert make(shape=(12,)).weights.shape == (13, 3)
    both = make("linear(features='shapes, scattering')", shape=(1, 12, 12))
    assert both.weights.shape == (1 + 25 * 32 + 81 * 9, 3)
    with pytest.raises(SpecError, match="unknown features 'shape'. Did you mean 'shapes'"):
        make("linear(features='shape')", shape=(1, 12, 12))


def test_an_example_of_absurd_inputs_spoils_nothing():
    v, weights = generator(0, "rows").normal(size=(6, 4)).astype(np.float32), np.zeros((4, 3), np.float32)
    y, spoiled, sound = np.arange(6) % 3, v.copy(), [0, 1, 4, 5]
    spoiled[2], spoiled[3, 1] = np.nan, np.inf
    found = clipped_sum(spoiled, y, weights, 1.0)
    assert found == pytest.approx(clipped_sum(v[sound], y[sound], weights, 1.0), abs=1e-12)


def test_the_rows_of_the_transfer_set_are_computed_once_also_for_a_model_that_was_loaded(monkeypatch):
    x, _ = blobs(300, seed=9)
    first = seen()
    first.distill(x, np.eye(3, dtype=np.float32)[np.zeros(300, int)], w=np.ones(300), rng=generator(0, "distill"))
    again = seen()
    again.load({name: array.copy() for name, array in first.state().items()})
    monkeypatch.setattr(again, "features", lambda part: pytest.fail("computed again"))
    assert again.predict(x).tobytes() == first.predict(x).tobytes()
    again.distill(x, first.predict(x), w=np.ones(300), rng=generator(1, "distill"))


def test_the_rows_of_some_public_inputs_are_those_of_all_and_not_computed_again(monkeypatch):
    x, y = blobs(300, seed=9)
    model = seen()
    model.fit(x[:50] + 1, y[:50], rng=generator(0, "fit"))
    whole = model.rows(x)
    asked = np.array([7, 250, 7, 0])
    computed = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda part: computed.append(len(part)) or features(part))
    assert model.rows(x[asked]).tobytes() == whole[asked].tobytes() and not computed
    other = x[asked] + np.float32(0.5)
    assert not np.array_equal(model.rows(other), whole[asked]) and computed == [4]
    mixed = np.concatenate([x[:2], other])
    assert np.allclose(model.rows(mixed)[:2], whole[:2], atol=1e-6) and computed == [4, 6]
    assert model.rows(x[:0]).shape == (0, whole.shape[1])


def test_a_transfer_set_with_equal_rows_is_known_again_in_its_order_only(monkeypatch):
    x = np.concatenate([blobs(50, seed=9)[0]] * 2)
    first, again, other = make(), make(), make()
    first.see(x)
    monkeypatch.setattr(again, "features", lambda part: pytest.fail("computed again"))
    again.see(x.copy())
    assert again.space is first.space
    make("linear(dimensions=2)").see(x)  # another learner of the same run takes nothing away
    again.see(x)
    assert again.rows(x[:2]).tobytes() == first.rows(x[:2]).tobytes()
    other.see(x[::-1].copy())
    assert other.space is not first.space


def test_as_many_examples_as_dimensions_are_not_learned_by_heart():
    """Where a client has as many examples as dimensions, least squares would be at its worst."""
    rng = np.random.default_rng(5)
    corners = rng.standard_normal((3, 30))

    def draw(n):
        y = rng.integers(0, 3, n)
        return (corners[y] + 2 * rng.standard_normal((n, 30))).astype(np.float32), y

    training = Training(epochs=20)
    public, (x, y), (x_test, y_test) = draw(400)[0], draw(30), draw(2000)
    informed, alone = (make("linear(dimensions=30)", shape=(30,), training=training) for _ in range(2))
    informed.see(public)
    alone.see(public)
    alone.space = dataclasses.replace(alone.space, moments=0 * alone.space.moments)  # as if nothing were public
    for model in (informed, alone):
        model.fit(x, y, rng=generator(0, "fit"))
    right = [np.mean(model.predict(x_test).argmax(axis=1) == y_test) for model in (informed, alone)]
    assert right[0] > right[1] + 0.03


def test_seeing_a_transfer_set_needs_little_more_memory_than_its_features():
    x = np.random.default_rng(0).random((3000, 1, 28, 28), np.float32)
    model = make("linear", classes=10, shape=x.shape[1:])
    tracemalloc.start()
    model.see(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 3000 * 1152 * 4  # 4 x 36 blocks of 8 directions, in single precision
