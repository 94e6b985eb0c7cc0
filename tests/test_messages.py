"""All that leaves a client or the server, field by field, with what it may reveal. What is not listed here fails."""

import dataclasses
import inspect
import json

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import envelope, events, frames, records, site
from fedkd.audits.shadows import Nearby
from fedkd.client import Answer, Site
from fedkd.codec import decode_query, decode_release, encode_query, encode_release
from fedkd.collect import Reply
from fedkd.config import Config
from fedkd.errors import (
    CheckpointError,
    CodecError,
    DataError,
    ExtraError,
    FedkdError,
    LedgerError,
    PrivacyError,
    RoundError,
    SoftLabelError,
)
from fedkd.federation import federation
from fedkd.flower import apps, messages
from fedkd.frames import peek
from fedkd.records import Query, Release, Teacher
from fedkd.release import prepare
from fedkd.rounds import Loop
from fedkd.secagg import letters
from fedkd.secagg.client import Rules, respond
from fedkd.softlabels import softmax

OWN = "stays where it is"
RECORDS = {
    "TransferSet": {"inputs": "public, and stays where it is", "fingerprint": "public"},
    "Teacher": {"p": "the mean of all ballots; with a protection noisy, or made of noisy models", "indices": "public"},
    "Query": {
        "round": "public",
        "indices": "which rows the server wants: what it knows of them",
        "classes": "public",
        "fingerprint": "public",
        "feedback": "a Teacher",
    },
    "Release": {
        "p": "what a model says of public rows: members and classes, unless the model or the sum is noisy",
        "w": "where a client has data like the public rows; with a protection only what p or a noisy sketch implies",
        "event": "the settings; that a client has trained in this round or not",
        "encoding": "the settings",
        "coding": "the settings",
        "weight_bits": "the settings",
    },
    "Ballots": {"p": OWN, "w": OWN},
    "RoundReport": {
        "round": "public",
        "metrics": "of the server's own models; of clients only with protect = none",
        "clients": "who answered in how many bytes; accuracy only with protect = none",
        "seconds": "of the server",
        "latency": "when answers came, as the server sees it anyway",
    },
}
HEADER = {
    "kind": "what it is",
    "encoding": "the settings",
    "classes": "public",
    "rows": "of the query",
    "round": "public",
    "client": "who answers",
    "fingerprint": "public",
    "flags": "the settings; whether an earlier frame arrived",
    "base": "the last round that arrived",
}
EVENTS = {
    "NonPrivate": set(),
    "NoOp": set(),
    "Gaussian": {"noise_multiplier", "count"},
    "SampledGaussian": {"rate", "noise_multiplier", "count", "fixed"},
    "Laplace": {"noise_multiplier", "count"},
    "RandomizedResponse": {"classes", "epsilon", "count"},
    "DistributedGaussian": {"noise_multiplier", "parties", "share", "dimension", "count"},
    "Pure": {"epsilon", "count"},
    "ZeroConcentrated": {"rho"},
}
"""Numbers of a mechanism, all of them settings: a count is of steps or queries, never of examples."""
KINDS = {
    frames.QUERY: "a Query",
    frames.RELEASE: "a Release",
    frames.KEYS: "public keys of a client, made anew in each round, and who signed them",
    frames.SHARES: "keys of the others; shares of a client's secrets, each sealed for one of them",
    frames.MASKED: "a Query and what was sealed; a vector that is uniform to whoever does not know the masks",
    frames.UNMASK: "who is there and who is gone; masks of those who are gone, of a robust round also own masks",
}
LETTERS = {"cards", "sealed", "clients", "words"}
CARD = {"client", "masks", "channel", "identity", "signature"}
RULES = {"least": "the settings", "robust": "the settings", "topic": "a hash of the settings"}
MESSAGES = {
    "query_content": {"query.frame": "a Query", "query.acknowledged": "which answer arrived last"},
    "answer_content": {
        "release.frame": "a Release",
        "release.salt": "random bytes of the system, made anew for each message",
        "release.accuracy": "only with protect = none and evaluate",
    },
    "error_content": {"refusal.client": "who", "refusal.error": "of a device the kind of its error, no text of it"},
}
KIND_NAMES = {"QUERY", "RELEASE", "KEYS", "SHARES", "MASKED", "UNMASK"}
FLAGS = {"DELTA", "RANGE", "ZSTD", "TAUGHT"}
"""How the rest is written, all of it settings or what arrived before."""
TYPES = {"query.release"}
ANSWER = {"frame": "a Release", "accuracy": "only with protect = none and evaluate"}
REPLY = {"round", "client", "frame", "error", "accuracy", "bytes_up", "latency", "asked_as", "node"}
"""What the server makes of an answer: no more than came in it, its size, its time and the node that it came from."""
ROW = {"status", "bytes_up", "bytes_down", "local", "error"}
"""What is told of a client that hides something; ``local`` is then None."""
MEASURED = {
    "student", "ensemble", "local_mean", "local_best", "local_worst", "student_nll", "student_ece", "teacher_nll",
    "teacher_ece", "teacher_entropy", "coverage", "asked", "answered", "away", "bytes_up", "bytes_down",
    "bytes_multicast",
}  # fmt: skip

SECRET = "patient 17 has label 3"
PRIVATE = {
    "dp_sgd": {"preset": "private"},
    "dp_sgd by sureness": {"preset": "private", "expertise": "confidence"},
    "dp_sgd and sketch": {"preset": "private", "expertise": "private_sketch"},
    "central": {"preset": "private_clients"},
    "gnmax": {"preset": "private_clients", "protect": "gnmax"},
}
MASKED = {
    dropout: {"preset": "private_clients", "protect": f"distributed(dropout={dropout!r}, least=0.75)"}
    for dropout in ("strict", "robust")
}


def private_config(name, **more):
    small = {"clients": 4, "student": "none", "noise": "seeded", "local_epochs": 2, "pooled": False}
    return Config(**{**(PRIVATE | MASKED)[name], **small, **more})


def fields_of(kind):
    return {field.name for field in dataclasses.fields(kind)}


# The walk.


def test_records_have_these_fields_and_no_others():
    kinds = {
        name: kind for name, kind in inspect.getmembers(records, dataclasses.is_dataclass)
        if kind.__module__ == "fedkd.records"
    }  # fmt: skip
    assert {name: fields_of(kind) for name, kind in kinds.items()} == {name: set(f) for name, f in RECORDS.items()}


def test_events_have_these_numbers_and_no_others():
    assert {kind.__name__: fields_of(kind) for kind in events.CODES.values()} == EVENTS


def test_what_client_and_server_hand_on_is_listed():
    assert fields_of(Answer) == set(ANSWER)
    assert fields_of(Reply) == REPLY
    assert fields_of(frames.Header) == set(HEADER)


def test_there_is_one_type_of_message_and_one_handler_for_it():
    assert set(apps.client._registered_funcs) == TYPES == {messages.QUERY}


def test_messages_carry_these_records_and_no_others():
    made = {
        name: function for name, function in inspect.getmembers(messages, inspect.isfunction)
        if name.endswith("_content")
    }  # fmt: skip
    assert set(made) == set(MESSAGES)
    full = {
        "query_content": made["query_content"](b"frame", 3),
        "answer_content": made["answer_content"](Answer(b"frame", 0.5)),
        "error_content": made["error_content"](1, "why"),
    }
    for name, content in full.items():
        assert {f"{record}.{key}" for record, value in content.items() for key in value} == set(MESSAGES[name]), name


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_large_frame_lies_beside_its_record_and_is_found_there(beyond):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    frame = bytes(range(256)) * (envelope.LARGE // 256) + bytes(beyond)
    query, answer = messages.query_content(frame, 3), messages.answer_content(Answer(frame, 0.5))
    for content, name in ((query, "query"), (answer, "release")):
        assert ("frame" in content.config_records[name], set(content)) == (
            (False, {name, "frame"}) if beyond else (True, {name})
        )
    assert messages.read_query(Message(query, 1, messages.QUERY)) == (frame, 3)
    assert messages.read_answer(answer) == (frame, 0.5, None, None)


def test_equal_answers_are_different_objects_of_equal_size():
    """Flower takes no object twice: without the salt, who answers the same would be told so."""
    one, two = (messages.answer_content(Answer(b"frame", None)) for _ in range(2))
    assert one.object_id != two.object_id
    assert messages.size_of(one) == messages.size_of(two)
    salts = [content.config_records["release"]["salt"] for content in (one, two)]
    assert [len(salt) for salt in salts] == [16, 16]


def test_a_foreign_array_is_no_frame():
    for stype in ("numpy.ndarray", "fedkd.frame2"):
        array = ArrayRecord({"frame": FlowerArray("uint8", (3,), stype, b"abc")})
        with pytest.raises(CodecError, match="not a fedkd frame"):
            messages.read_answer(RecordDict({"release": ConfigRecord({}), "frame": array}))
    with pytest.raises(CodecError, match="without a release frame"):
        messages.read_answer(RecordDict({"release": ConfigRecord({"frame": "text"})}))


def test_whoever_builds_a_message_does_so_in_one_file():
    for module in (apps, __import__("fedkd.flower.strategy", fromlist=["x"])):
        assert not {"ArrayRecord", "MetricRecord", "ConfigRecord"} & set(vars(module)), module.__name__


def test_frames_are_of_a_kind_that_is_listed_and_nothing_else(tmp_path):
    query = Query(1, np.arange(3), 3, "ab" * 32)
    asked = encode_query(query, 5)
    answered = encode_release(Release(np.full((3, 3), 1 / 3, np.float32), np.ones(3, np.float32)), query, 7)
    assert [peek(frame).kind for frame in (asked, answered)] == [frames.QUERY, frames.RELEASE] == [1, 2]
    small = {name for name, value in vars(frames).items() if name.isupper() and isinstance(value, int) and value < 16}
    assert small == {"VERSION", *FLAGS, *KIND_NAMES}
    assert {getattr(frames, name) for name in KIND_NAMES} == set(KINDS)
    for kind in set(range(16)) - set(KINDS):
        other = frames.write(dataclasses.replace(peek(answered), kind=kind), b"")
        with pytest.raises(CodecError):
            decode_release(other, query)
        with pytest.raises(CodecError):
            decode_query(other, query.fingerprint, 5)
        with pytest.raises((CodecError, PrivacyError)):
            respond(7, tmp_path, other, Rules(3, False, b""), lambda question: pytest.fail("private data was read"))


def test_a_masked_round_has_these_words_and_no_others():
    said = {name.split("_", 1)[1] for name in vars(letters) if name.startswith(("write_", "read_"))}
    assert said == LETTERS
    assert fields_of(letters.Card) == CARD
    assert fields_of(Rules) == set(RULES)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["float32", "float16", "argmax", "quantize(bits=4)", "top_k(k=2)"]))
def test_a_release_says_nothing_beside_its_fields(seed, chain):
    """A frame that is read and written again is the same to the bit: no room in it holds anything else."""
    rng = np.random.default_rng(seed)
    query = Query(int(rng.integers(1, 99)), np.flatnonzero(rng.random(9) < 0.7), 4, "cd" * 32)
    p = softmax(rng.normal(0, 2, (len(query.indices), 4))).astype(np.float32)
    event = events.SampledGaussian(0.5, 2.0, 3) if seed % 2 else events.NonPrivate()
    w = np.ones(len(p), np.float32) if seed % 3 else rng.random(len(p)).astype(np.float32)
    frame = encode_release(prepare(chain, Release(p, w, event), rng), query, seed)
    client, read = decode_release(frame, query)
    assert encode_release(read, query, client) == frame


def test_a_query_says_nothing_beside_its_fields():
    teacher = Teacher(np.full((2, 3), 1 / 3, np.float32), np.array([1, 4]))
    frame = encode_query(Query(2, np.array([0, 2]), 3, "ab" * 32, teacher), 5)
    read = decode_query(frame, "ab" * 32, 5)
    assert encode_query(read, 5) == frame


# With a protection.


def answers(config, keys=(0, 1, 2, 3)):
    """Return what clients with different shares say to the same query, as messages."""
    shared = site.shared_data(config)
    query = Query(1, np.arange(len(shared.transfer)), shared.dataset.classes, shared.transfer.fingerprint)
    frame = encode_query(query, len(shared.transfer))
    return [ask(config, frame, {"partition-id": k}) for k in keys]


def ask(config, frame, node_config, folder="/nonexistent/state"):
    run_config = config.to_run_config()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as in a worker
    context = Context(1, 9, {"state-dir": folder, **node_config}, RecordDict(), run_config)
    return apps.answer_query(Message(messages.query_content(frame), 1, messages.QUERY), context).content


@pytest.fixture
def no_state(monkeypatch):
    """Clients of these tests remember nothing and keep no ledger."""
    made = site.site_of
    monkeypatch.setattr(
        site, "site_of", lambda *given, **named: dataclasses.replace(made(*given, **named), state=None, ledger=None)
    )


@pytest.mark.parametrize("name", PRIVATE)
def test_in_private_modes_an_answer_is_a_frame_and_no_number_beside_it(name, no_state):
    for content in answers(private_config(name)):
        assert {f"{record}.{key}" for record, value in content.items() for key in value} == {
            "release.frame",
            "release.salt",
        }


def test_without_a_protection_accuracy_goes_along_so_that_the_test_above_can_fail(no_state):
    (content,) = answers(Config(clients=4, learner="linear", local_epochs=1), keys=(0,))
    assert "accuracy" in content.config_records["release"]


@pytest.mark.parametrize("name", PRIVATE)
def test_in_private_modes_all_answers_have_one_size_whatever_the_data(name, no_state, monkeypatch):
    config = private_config(name, partition="dirichlet(alpha=0.3)")
    real = site.shared_data(config)
    nobody = dataclasses.replace(real, parts=[*real.parts[:3], real.parts[3][:0]])  # and a client without any
    monkeypatch.setattr(site, "shared_data", lambda *given: nobody)
    site._private.cache_clear()
    shares = [len(part) for part in nobody.parts]
    assert len(set(shares)) == 4
    assert len({messages.size_of(content) for content in answers(config)}) == 1
    site._private.cache_clear()


class Noting(Nearby):
    """Notes the kind and the size of every answer."""

    def __init__(self, sites, config):
        super().__init__(sites, config)
        self.sizes = {}

    def again(self, round_, client, frame, acknowledged):
        sent = super().again(round_, client, frame, acknowledged)
        answer = self._replies[-1].frame
        self.sizes.setdefault(peek(answer).kind, []).append(len(answer))
        return sent


@pytest.mark.parametrize("name", MASKED)
def test_in_masked_rounds_all_answers_of_a_kind_have_one_size_whatever_the_data(name, tmp_path):
    config = private_config(name, partition="dirichlet(alpha=0.3)")
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    near = Noting(sites(config, shared, tmp_path), config)
    Loop(config, shared.transfer, 10, None).run(near)
    expected = {"strict": {frames.KEYS, frames.MASKED}, "robust": set(KINDS) - {frames.QUERY, frames.RELEASE}}
    assert set(near.sizes) == expected[name]
    assert all(len(sizes) == 4 and len(set(sizes)) == 1 for sizes in near.sizes.values()), near.sizes


@pytest.mark.parametrize("name", [*PRIVATE, *MASKED])
def test_in_private_modes_the_server_writes_nothing_that_only_clients_know(name, tmp_path):
    config = private_config(name, evaluate=True)
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    (report,) = Loop(config, shared.transfer, 10, None).run(Nearby(sites(config, shared, tmp_path), config))
    assert set(report.metrics) == MEASURED
    assert all(report.metrics[key] is None for key in ("local_mean", "local_best", "local_worst"))
    for row in report.clients.values():
        assert set(row) == ROW
        assert row["local"] is None


def sites(config, shared, folder=None):
    state = (lambda k: None) if folder is None else (lambda k: folder / f"{k}.safetensors")
    return [
        Site(k, *shared.private(k), 10, shared.transfer, test=shared.test(), state=state(k))
        for k in range(config.clients)
    ]


def test_what_a_client_claims_of_itself_is_not_believed_in_private_modes():
    """A number that an old or dishonest client sends all the same is not kept by the server."""
    config = private_config("dp_sgd")
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)

    class Talkative(Nearby):
        def poll(self, timeout):
            return [dataclasses.replace(reply, accuracy=0.9) for reply in super().poll(timeout)]

    (report,) = Loop(config, shared.transfer, 10, None).run(Talkative(sites(config, shared), config))
    assert all(row["local"] is None for row in report.clients.values())


# Errors.


@pytest.fixture
def device(tmp_path):
    """The node config of a device with data of its own."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((30, 1, 8, 8), dtype=np.float32), y=rng.integers(0, 10, 30))
    return {"partition-id": 3, "data": f"npz:{tmp_path / 'mine.npz'}", "ledger-dir": str(tmp_path / "ledger")}


def extra(text):
    return ExtraError(text, "x", "y")


RAISED = [ValueError, KeyError, RuntimeError, MemoryError, OSError, FedkdError, DataError, SoftLabelError,
          CheckpointError, LedgerError, PrivacyError, RoundError, extra]  # fmt: skip


@pytest.mark.parametrize("protect", ["none", "dp_sgd"])
@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_no_text_of_an_error_leaves_a_device(kind, protect, device, tmp_path, monkeypatch):
    def leak(*given, **named):
        raise kind(SECRET)

    monkeypatch.setattr("fedkd.client._fit", leak)
    config = private_config("dp_sgd") if protect == "dp_sgd" else Config(clients=4, learner="linear", rounds=1)
    shared = site.shared_data(config)
    frame = encode_query(Query(1, np.arange(5), 10, shared.transfer.fingerprint), len(shared.transfer))
    content = ask(config, frame, device, str(tmp_path / "state"))
    assert set(content) == {"refusal"}
    said = json.dumps(dict(content["refusal"]))
    assert "patient" not in said
    assert "17" not in said
    assert type(kind(SECRET)).__name__ in said


@pytest.mark.parametrize(
    "wrong",
    [{"data": "/home/ward 7/patients.npz"}, {"data": "npz:/home/ward 7/patients.npz"}, {"data": "patients"},
     {"data": "csv:/home/ward 7/patients.npz"}, {"budget-epsilon": "patients"}, {"transfer": "npz:/patients.npz"}],
)  # fmt: skip
def test_what_the_owner_of_a_device_has_set_is_not_told(wrong, device, tmp_path):
    config = private_config("dp_sgd")
    shared = site.shared_data(config)
    frame = encode_query(Query(1, np.arange(5), 10, shared.transfer.fingerprint), len(shared.transfer))
    content = ask(config, frame, {**device, **wrong}, str(tmp_path / "state"))
    assert "patients" not in json.dumps(dict(content["refusal"]))


def test_an_error_before_there_is_a_client_has_no_text_of_the_device():
    with pytest.raises(FedkdError) as caught:  # the text of it is told
        site.client_key({"partition-id": "patients"}, 9)
    assert "patients" not in str(caught.value)
