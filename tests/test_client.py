"""A client's half of a round: bytes in, bytes out."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fedkd import client as client_module
from fedkd.client import HONEST, Site, answer, build_learner, class_means, regularized, role, spec_of
from fedkd.codec import decode_release, encode_query, remember_feedback
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import (
    BudgetExhausted,
    CodecError,
    ConfigError,
    FingerprintError,
    LedgerError,
    PrivacyError,
    SoftLabelError,
)
from fedkd.events import NoOp, SampledGaussian
from fedkd.files import load_arrays
from fedkd.privacy.ledger import Budget
from fedkd.privacy.purse import open_purse, planned
from fedkd.protect import spending
from fedkd.records import Query, Teacher, TransferSet
from fedkd.softlabels import one_hot

ROWS, CLASSES = 30, 3
CENTERS = np.array([[0, 0], [4, 0], [0, 4]], np.float32)


def cloud(n, seed, labels=None):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n) if labels is None else np.asarray(labels)
    return (CENTERS[y] + rng.normal(0, 0.5, (len(y), 2))).astype(np.float32), y.astype(np.int64)


POOL, TRUTH = cloud(ROWS, 1)
TRANSFER = TransferSet(POOL, fingerprint(POOL))
CONFIG = Config(learner="logistic, constant", expertise="uniform", evidence="none", release="float32")


def site(path=None, *, key=0, labels=None):
    x, y = cloud(60, 2, labels)
    return Site(key, x, y, CLASSES, TRANSFER, test=cloud(50, 3), state=None if path is None else path / "c.safetensors")


def ask(round_=1, *, rows=None, feedback=None, fp=TRANSFER.fingerprint, classes=CLASSES):
    indices = np.arange(ROWS) if rows is None else np.asarray(rows)
    return Query(round_, indices, classes, fp, feedback)


def frame(query):
    return encode_query(query, ROWS, "float32")


def test_the_answer_is_the_soft_labels_of_the_queried_rows_in_their_order():
    query = ask(rows=[2, 7, 20])
    key, release = decode_release(answer(site(key=4), frame(query), CONFIG).frame, query)
    assert key == 4
    assert (release.p.argmax(axis=1) == TRUTH[[2, 7, 20]]).all()


def test_a_model_that_is_asked_for_all_rows_reads_the_transfer_set_itself(monkeypatch):
    """A copy of it may be more than a small device has room for."""
    read = []
    monkeypatch.setattr(
        client_module, "_predict", lambda owner, learner, x: read.append(x) or np.full((len(x), 3), 1 / 3, np.float32)
    )
    answer(site(), frame(ask()), CONFIG)
    answer(site(), frame(ask(rows=[3, 5])), CONFIG)
    assert np.shares_memory(read[0], POOL)
    assert (read[1] == POOL[[3, 5]]).all()


def test_mixed_learners_are_dealt_in_turn():
    assert [spec_of(CONFIG, key) for key in range(3)] == ["logistic", "constant", "logistic"]


def test_two_clients_start_from_different_weights_and_the_same_client_from_the_same():
    config = Config(learner="mlp")
    states = [build_learner(site(key=key), config).state() for key in (0, 0, 1)]
    name = next(iter(states[0]))
    assert (states[0][name] == states[1][name]).all()
    assert not (states[0][name] == states[2][name]).all()


def test_the_same_query_again_gets_the_same_bytes_without_training(tmp_path, monkeypatch):
    first = answer(site(tmp_path), frame(ask()), CONFIG)
    monkeypatch.setattr(client_module, "build_learner", lambda *a: pytest.fail("trained twice"))
    again = answer(site(tmp_path), frame(ask()), CONFIG)
    assert again.frame == first.frame
    assert again.accuracy == first.accuracy


def test_what_was_learned_in_one_round_is_there_in_the_next(tmp_path):
    config = Config(learner="constant", expertise="uniform", evidence="none", release="float32")
    owner = site(tmp_path, labels=[0] * 60)
    for round_ in (1, 2):
        query = ask(round_)
        _, release = decode_release(answer(owner, frame(query), config).frame, query)
    assert release.p[0, 0] == pytest.approx(121 / 123)  # 1 imagined + 60 seen twice


def test_a_query_from_the_past_starts_anew(tmp_path):
    config = Config(learner="constant", expertise="uniform", evidence="none", release="float32")
    owner = site(tmp_path, labels=[0] * 60)
    for round_ in (1, 2):
        answer(owner, frame(ask(round_)), config)
    query = ask(1, rows=[0, 1])
    _, release = decode_release(answer(owner, frame(query), config).frame, query)
    assert release.p[0, 0] == pytest.approx(61 / 63)


def test_a_damaged_memory_costs_the_memory_and_not_the_round(tmp_path):
    owner = site(tmp_path)
    expected = answer(owner, frame(ask()), CONFIG).frame
    owner.state.write_bytes(b"garbage")
    assert answer(owner, frame(ask()), CONFIG).frame == expected


def test_feedback_moves_a_client_toward_the_teacher():
    # This client has only ever seen class 0; what came back teaches it the others.
    teacher = Teacher(one_hot(TRUTH, CLASSES), np.arange(ROWS))
    alone, taught = (
        answer(site(labels=[0] * 60), frame(ask(feedback=back)), CONFIG).accuracy for back in (None, teacher)
    )
    assert taught > alone + 0.3


def test_another_transfer_set_is_refused_by_name():
    other = "ab" * 32
    with pytest.raises(FingerprintError, match="same samples in the same order"):
        answer(site(), frame(ask(fp=other)), CONFIG)


def test_another_number_of_classes_is_refused():
    with pytest.raises(CodecError, match="asks about 4 classes, this client knows 3"):
        answer(site(), frame(ask(classes=4)), CONFIG)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (np.full((ROWS, CLASSES), np.nan, np.float32), "finite"),
        (np.full((ROWS, CLASSES), 2.0, np.float32), "are these logits"),
        (np.full((ROWS, 4), 0.25, np.float32), "must have 3 classes"),
        (np.full((ROWS - 1, CLASSES), 1 / 3, np.float32), "30 rows"),
        (np.ones((ROWS, CLASSES), np.int64), "floating point"),
    ],
)
def test_bad_predictions_never_leave(returned, sentence, monkeypatch):
    model = build_learner(site(), Config(learner="constant"))
    model.predict = lambda x: returned
    monkeypatch.setattr(client_module, "build_learner", lambda *a: model)
    with pytest.raises(SoftLabelError, match=sentence):
        answer(site(), frame(ask()), CONFIG)


def test_accuracy_is_reported_only_where_the_run_allows_it():
    assert answer(site(), frame(ask()), CONFIG).accuracy > 0.9
    assert answer(site(), frame(ask()), CONFIG.model_copy(update={"evaluate": False})).accuracy is None


def test_static_expertise_is_computed_once(tmp_path, monkeypatch):
    config = Config(learner="constant", expertise="density", release="float32")
    owner = site(tmp_path)
    query = ask(1, rows=[0, 5])
    _, first = decode_release(answer(owner, frame(query), config).frame, query)
    monkeypatch.setattr("fedkd.expertise.kth_distance", lambda *a, **k: pytest.fail("computed twice"))
    query = ask(2, rows=[5, 9])
    _, second = decode_release(answer(owner, frame(query), config).frame, query)
    assert second.w[0] == first.w[1]


def test_another_run_on_the_same_device_gets_no_answer_of_the_last_one(tmp_path):
    first = answer(site(tmp_path), frame(ask()), CONFIG).frame
    other = CONFIG.model_copy(update={"release": "argmax"})
    second = answer(site(tmp_path), frame(ask()), other).frame
    assert len(second) < len(first) / 4
    assert second == answer(site(), frame(ask()), other).frame


def test_how_long_a_run_goes_on_does_not_make_it_another_run(tmp_path, monkeypatch):
    first = answer(site(tmp_path), frame(ask()), CONFIG).frame
    monkeypatch.setattr(client_module, "build_learner", lambda *a: pytest.fail("trained twice"))
    assert answer(site(tmp_path), frame(ask()), CONFIG.model_copy(update={"rounds": 9})).frame == first


# Feedback on top of feedback.

LEAN = Config(learner="constant", expertise="uniform", evidence="none", release="float32", broadcast="float32 | delta")


def lean_frames(*labels):
    """Frames of rounds 2, 3 ...: each on top of those before, and the queries that they mean."""
    known, made = None, []
    for round_, said in enumerate(labels, start=2):
        query = ask(round_, feedback=Teacher(one_hot(np.asarray(said), CLASSES), np.arange(ROWS)))
        made.append((encode_query(query, ROWS, "float32", coding={"delta"}, known=known), query))
        known = remember_feedback(known, query, "float32", ROWS)
    return made


def test_feedback_on_top_of_feedback_teaches_what_it_would_in_full(tmp_path):
    moved = np.where(np.arange(ROWS) < 3, 0, TRUTH)
    config = LEAN.model_copy(update={"learner": "mlp", "local_epochs": 1, "feedback_epochs": 2})
    lean, full = site(tmp_path / "lean"), site(tmp_path / "full")
    for short, query in lean_frames(TRUTH, moved, moved, TRUTH):
        got, expected = answer(lean, short, config), answer(full, frame(query), config)
        assert got.frame == expected.frame
    assert len(short) < len(frame(query)) - 20 * 12


def test_a_client_that_forgot_says_so_and_keeps_its_state(tmp_path):
    (first, _), (second, query) = lean_frames(TRUTH, TRUTH)
    owner = site(tmp_path)
    with pytest.raises(CodecError, match="round 2, which is not here; send it in full"):
        answer(owner, second, LEAN)
    assert not owner.state.exists()
    expected = answer(owner, frame(query), LEAN).frame  # in the same round, in full
    assert answer(owner, frame(query), LEAN).frame == expected


def test_a_query_without_feedback_forgets_nothing(tmp_path):
    (first, _), _, (third, query) = lean_frames(TRUTH, TRUTH, TRUTH)
    owner = site(tmp_path)
    answer(owner, first, LEAN)
    answer(owner, frame(ask(3)), LEAN)
    known = remember_feedback(None, ask(2, feedback=query.feedback), "float32", ROWS)
    decode_release(
        answer(owner, encode_query(query, ROWS, "float32", coding={"delta"}, known=known), LEAN).frame, query
    )


def test_a_lean_query_that_comes_twice_gets_the_same_bytes(tmp_path, monkeypatch):
    (first, _), (second, _) = lean_frames(TRUTH, TRUTH)
    owner = site(tmp_path)
    answer(owner, first, LEAN)
    once = answer(owner, second, LEAN).frame
    monkeypatch.setattr(client_module, "build_learner", lambda *a: pytest.fail("trained twice"))
    assert answer(owner, second, LEAN).frame == once


def test_without_delta_in_the_broadcast_no_feedback_is_kept(tmp_path):
    owner = site(tmp_path)
    answer(owner, lean_frames(TRUTH)[0][0], LEAN.model_copy(update={"broadcast": "float32"}))
    assert not [name for name in load_arrays(owner.state)[0] if name.startswith("told.")]


# Ballots about classes (FD).


def test_class_means_by_hand():
    p = np.array([[0.6, 0.4, 0.0], [0.8, 0.0, 0.2], [0.1, 0.1, 0.8]])
    means, w = class_means(p, np.array([0, 0, 2]), 3)
    assert means[0] == pytest.approx([0.7, 0.2, 0.1])
    assert means[1] == pytest.approx([1 / 3] * 3)
    assert means[2] == pytest.approx([0.1, 0.1, 0.8])
    assert w.tolist() == [1, 0, 1]


def test_one_target_has_the_gradient_of_both_terms_of_fd():
    teacher = Teacher(np.array([[0.5, 0.5, 0.0]], np.float32), np.array([1]))
    targets = regularized(np.array([1, 0]), teacher, 3)
    assert targets.tolist() == [[0.25, 0.75, 0.0], [1, 0, 0]]
    p = np.array([0.2, 0.5, 0.3])  # CE(p, y) + CE(p, t), halved, is CE(p, (y + t) / 2)
    both = -np.log(p[1]) - (0.5 * np.log(p[0]) + 0.5 * np.log(p[1]))
    assert -(targets[0] * np.log(p)).sum() == pytest.approx(both / 2)


def test_a_client_that_is_asked_about_classes_answers_one_row_for_each_and_abstains_on_those_it_lacks():
    config = Config(
        learner="mlp", expertise="uniform", evidence="none", release="float32", keys="classes", student="none",
        local_epochs=30, feedback_epochs=30,
    )  # fmt: skip
    query = Query(1, np.arange(CLASSES), CLASSES, TRANSFER.fingerprint)
    asked = encode_query(query, CLASSES, "float32")
    release = decode_release(answer(site(labels=[0, 2] * 30), asked, config).frame, query)[1]
    assert release.w.tolist() == [1, 0, 1]
    assert release.p[[0, 2]].argmax(axis=1).tolist() == [0, 2]
    back = Teacher(np.array([[0.4, 0.6, 0.0]], np.float32), np.array([0]))
    again = Query(2, np.arange(CLASSES), CLASSES, TRANSFER.fingerprint, back)
    taught = answer(site(labels=[0, 2] * 30), encode_query(again, CLASSES, "float32"), config)
    assert decode_release(taught.frame, again)[1].p[0, 1] > release.p[0, 1] + 0.1


def test_a_dishonest_client_lies_in_its_ballots_or_learns_from_flipped_labels_and_the_others_do_not():
    query = ask()
    honest = {k: decode_release(answer(site(key=k), frame(query), CONFIG).frame, query)[1].p for k in range(8)}
    lying = CONFIG.model_copy(update={"attack": "lma(share=0.5)"})
    said = {k: decode_release(answer(site(key=k), frame(query), lying).frame, query)[1].p for k in range(8)}
    changed = {k for k in range(8) if not np.array_equal(said[k], honest[k])}
    assert changed == {k for k in range(8) if role(lying, k) is not HONEST}
    assert len(changed) == 4
    for k in changed:
        assert (said[k].argmax(axis=1) == honest[k].argmin(axis=1)).all()

    flipping = CONFIG.model_copy(update={"attack": "label_flip(share=1.0)"})
    flipped = decode_release(answer(site(key=0), frame(query), flipping).frame, query)[1].p
    right = honest[0].argmax(axis=1)
    assert (flipped.argmax(axis=1) == CLASSES - 1 - right).mean() > 0.9


def test_a_larger_share_of_liars_contains_the_smaller_one():
    few, many = (CONFIG.model_copy(update={"attack": f"random(share={share})"}) for share in (0.25, 0.5))
    liars = [{k for k in range(8) if role(config, k) is not HONEST} for config in (few, many)]
    assert len(liars[0]) == 2 and len(liars[1]) == 4 and liars[0] < liars[1]


PRIVATE = CONFIG.model_copy(
    update={
        "protect": "dp_sgd(rate=0.5)",
        "epsilon": 3.0,
        "rounds": 2,
        "learner": "linear",
        "expertise": "uniform",
        "evidence": "none",
    }
)


def test_a_private_client_charges_its_ledger_before_it_trains_and_says_what_it_did(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger", state=tmp_path / "state.safetensors")
    first = answer(mine, frame(ask()), PRIVATE)
    _, release = decode_release(first.frame, ask())
    assert release.event == spending(PRIVATE).round[0]
    assert first.accuracy is None
    assert answer(mine, frame(ask()), PRIVATE) == first  # a retry: the same bytes, nothing new is spent
    with open_purse(tmp_path / "ledger", PRIVATE, _fingerprint(mine)) as ledger:
        assert [e for e in ledger.spent() if e != NoOp()] == list(planned(PRIVATE))


def test_a_round_whose_answer_was_lost_is_not_trained_twice(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger")
    first = decode_release(answer(mine, frame(ask()), PRIVATE).frame, ask())[1]
    again = decode_release(answer(mine, frame(ask()), PRIVATE).frame, ask())[1]  # no state: the answer was lost
    assert isinstance(first.event, SampledGaussian) and again.event == NoOp()
    assert not np.array_equal(first.p, again.p)


def test_another_run_on_the_same_data_is_refused_when_the_budget_is_spent(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger")
    answer(mine, frame(ask()), PRIVATE)
    with pytest.raises(BudgetExhausted):
        answer(replace(mine, run="another"), frame(ask()), PRIVATE)
    roomy = replace(mine, ledger=tmp_path / "roomy", budget=Budget(20.0, 1e-5))
    for run in ("one", "another"):
        answer(replace(roomy, run=run), frame(ask()), PRIVATE)


def _fingerprint(mine):
    return hashlib.sha256(fingerprint(mine.x).encode() + np.asarray(mine.y, np.int64).tobytes()).hexdigest()


def test_a_round_that_was_not_planned_is_not_answered(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger")
    for round_ in (1, 2):
        answer(mine, frame(ask(round_)), PRIVATE)
    with pytest.raises(PrivacyError, match="round 3 is not one of the 2"):
        answer(mine, frame(ask(3)), PRIVATE)


def test_a_run_that_comes_back_with_other_settings_is_not_answered(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger", budget=Budget(50.0, 1e-5))
    answer(mine, frame(ask()), PRIVATE)
    for change in ({"epsilon": 10.0}, {"rounds": 5}, {"local_epochs": 3}):
        with pytest.raises(PrivacyError, match="begun with other settings"):
            answer(mine, frame(ask(2)), PRIVATE.model_copy(update=change))


@pytest.mark.parametrize("change", [{"noise": "seeded"}, {"protect": "none", "epsilon": 0.0}, {"protect": "central"}])
def test_a_device_with_a_budget_answers_under_no_weaker_protection(tmp_path, change):
    mine = replace(site(), ledger=tmp_path / "ledger", budget=Budget(3.0, 1e-5))
    with pytest.raises(ConfigError, match="answers only under its owner's budget"):
        answer(mine, frame(ask()), PRIVATE.model_copy(update=change))


LOCAL = PRIVATE.model_copy(update={"protect": "local(labels=5, classes=3)", "release": "argmax"})


def test_a_client_says_few_randomized_classes_and_charges_for_them_first(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger", state=tmp_path / "state.safetensors")
    first = answer(mine, frame(ask()), LOCAL)
    _, release = decode_release(first.frame, ask())
    assert release.event == spending(LOCAL).round[0]
    assert (release.w > 0).sum() == 5 and release.p[release.w > 0].max(axis=1).tolist() == [1.0] * 5
    assert answer(mine, frame(ask()), LOCAL) == first  # a retry: the same bytes, no second coin is thrown
    with open_purse(tmp_path / "ledger", LOCAL, _fingerprint(mine)) as ledger:
        assert [e for e in ledger.spent() if e != NoOp()] == list(planned(LOCAL))
    with pytest.raises(BudgetExhausted):
        answer(replace(mine, run="another", state=None), frame(ask()), LOCAL)


def test_a_round_whose_randomized_answer_was_lost_is_answered_by_silence(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger")
    answer(mine, frame(ask()), LOCAL)
    _, again = decode_release(answer(mine, frame(ask()), LOCAL).frame, ask())
    assert again.event == NoOp() and not again.w.any()


def test_which_rows_a_client_answers_depends_on_nothing_it_holds(tmp_path):
    held = [site(), replace(site(), x=site().x[:3], y=site().y[:3])]
    rows = [decode_release(answer(mine, frame(ask()), LOCAL).frame, ask())[1].w > 0 for mine in held]
    assert np.array_equal(*rows)
    other = decode_release(answer(replace(site(), key=1), frame(ask()), LOCAL).frame, ask())[1].w > 0
    assert not (rows[0] & other).any()


def test_soft_labels_with_noise_of_their_own_say_what_they_cost(tmp_path):
    config = PRIVATE.model_copy(update={"protect": "local_gaussian"})
    mine = replace(site(), ledger=tmp_path / "ledger")
    _, release = decode_release(answer(mine, frame(ask()), config).frame, ask())
    assert release.event == spending(config).round[0] and release.w.all()
    _, again = decode_release(answer(mine, frame(ask()), config).frame, ask())
    assert not again.w.any()


def test_a_budget_for_another_number_of_classes_is_refused_before_anything_is_charged(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger")
    with pytest.raises(ConfigError, match="is for 10 classes"):
        answer(mine, frame(ask()), LOCAL.model_copy(update={"protect": "local"}))
    assert not (tmp_path / "ledger").exists()


def test_a_sketch_is_drawn_once_however_often_the_server_asks(tmp_path):
    config = PRIVATE.model_copy(update={"expertise": "private_sketch(sigma=5.0)", "release": "float32"})
    mine = replace(site(), ledger=tmp_path / "ledger", state=tmp_path / "state.safetensors")
    query = ask()
    drawn = [
        decode_release(answer(mine, encode_query(query, ROWS, "float32"), config, known).frame, query)[1].w
        for known in (0, 7, 8)
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] == drawn[2]).all()
    (tmp_path / "state.safetensors").unlink()
    lost = decode_release(answer(mine, encode_query(query, ROWS, "float32"), config, 9).frame, query)[1]
    assert (lost.w == 1).all() and lost.event == NoOp()


def test_a_ledger_that_was_put_back_is_noticed(tmp_path):
    mine = replace(site(), ledger=tmp_path / "ledger", state=tmp_path / "state.safetensors")
    answer(mine, frame(ask()), PRIVATE)
    shutil.rmtree(tmp_path / "ledger")
    (tmp_path / "ledger.marker").unlink()
    with pytest.raises(LedgerError):
        answer(mine, frame(ask(2)), PRIVATE)
