"""What a node of its own answers, refuses and never does, whoever carries its messages."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd import site
from fedkd.client import Answer
from fedkd.codec import decode_release, encode_query
from fedkd.config import Config
from fedkd.errors import ConfigError, SpecError
from fedkd.records import Query
from fedkd.secagg.server import ask_keys
from fedkd.site import Common, Refusal, respond

ROOT = Path(__file__).resolve().parent.parent
BANDS = f"onnx(path={str(ROOT / 'tests' / 'vectors' / 'bands.onnx')!r})"
CONFIG = Config(clients=4, rounds=2, learner="linear", student="none", local_epochs=2, expertise="uniform")


@pytest.fixture
def mine(tmp_path):
    """The node config of a device with data of its own."""
    shared = site.shared_data(CONFIG)
    x, y = shared.private(1)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    return {"data": f"npz:{tmp_path / 'mine.npz'}", "state-dir": str(tmp_path / "state"), "partition-id": 1,
            "ledger-dir": str(tmp_path / "ledger")}  # fmt: skip


def question(config=CONFIG):
    shared = site.shared_data(config)
    query = Query(1, np.arange(len(shared.transfer)), 10, shared.transfer.fingerprint)
    return query, encode_query(query, len(shared.transfer))


def ask(config, node_config, common=None, frame=None, agreed=None):
    return respond(
        frame or question()[1], 0, run_config=config.to_run_config(), node_config=node_config, run_id=5, node_id=9,
        common=common, agreed=agreed and agreed.to_run_config(),
    )  # fmt: skip


def common():
    shared = site.shared_data(CONFIG)
    return Common(shared.transfer, 10)


def test_what_is_common_may_come_from_the_server_or_from_the_run_and_the_answer_is_the_same(mine, tmp_path):
    one = ask(CONFIG, mine)
    two = ask(CONFIG, {**mine, "state-dir": str(tmp_path / "other")}, common())
    assert isinstance(one, Answer)
    assert one.frame == two.frame
    client, _ = decode_release(one.frame, question()[0])
    assert client == 1
    assert one.accuracy is None  # a device has no test set


def test_the_run_config_makes_a_node_read_none_of_its_files(mine, tmp_path, monkeypatch):
    public, (_, frame) = common(), question()
    monkeypatch.setattr(site, "federation", lambda *given: pytest.fail("the run's data were read"))
    config = CONFIG.model_copy(update={"data": "npz:/etc/passwd.npz", "transfer": "npz:/etc/other.npz"})
    assert isinstance(ask(config, mine, public, frame), Answer)


def test_the_run_config_names_no_folder_that_a_node_writes_to(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_HOME", str(tmp_path / "home"))
    (tmp_path / "chosen").mkdir()
    config = CONFIG.model_copy(update={"output": str(tmp_path / "chosen")})
    del mine["state-dir"]
    assert isinstance(ask(config, mine, common()), Answer)
    assert list((tmp_path / "chosen").iterdir()) == []
    assert (tmp_path / "home" / "state" / "5" / "1.safetensors").exists()


def test_without_data_of_its_own_a_node_that_trusts_no_paths_refuses():
    said = ask(CONFIG, {"partition-id": 1}, common())
    assert said == Refusal("1", "ConfigError: this node has no data of its own")


# The owner's word.


def test_the_owners_model_is_used_whatever_the_run_deals(mine, tmp_path):
    dealt = ask(CONFIG.model_copy(update={"learner": "constant"}), mine)
    own = {**mine, "learner": "constant", "state-dir": str(tmp_path / "own")}
    assert ask(CONFIG, own).frame == dealt.frame
    linear = ask(CONFIG, {**mine, "state-dir": str(tmp_path / "run")})
    assert linear.frame != dealt.frame


def test_another_model_of_the_owners_does_not_take_up_what_the_first_one_learned(mine):
    query, frame = question()
    first = ask(CONFIG, {**mine, "learner": "constant"})
    second = ask(CONFIG, {**mine, "learner": "linear"})
    fresh = ask(CONFIG, {**mine, "learner": "linear", "state-dir": mine["state-dir"] + "2"})
    assert first.frame != second.frame == fresh.frame


@pytest.mark.parametrize(
    ("required", "protect", "answers"),
    [
        ("any", "none", False), ("any", "central", True), ("any", "dp_sgd", True),
        ("device", "central", False), ("device", "dp_sgd(examples=50)", True),
        ("dp_sgd", "dp_sgd(examples=50)", True), ("dp_sgd", "local", False),
    ],
)  # fmt: skip
def test_an_owner_may_insist_on_a_protection(required, protect, answers, mine):
    private = (
        {}
        if protect == "none"
        else {"protect": protect, "epsilon": 8.0, "evidence": "none", "late": False, "record": False}
    )
    config = Config(**{**CONFIG.model_dump(), **private, "preset": "expert"})
    said = ask(config, {**mine, "require-protect": required}, common())
    assert isinstance(said, Answer) is answers, said
    if not answers:
        expected = f"this node answers only with protect = {required}, the run has protect = {protect!r}"
        assert said == Refusal("1", f"ConfigError: {expected}")
        assert not Path(mine["state-dir"]).exists()


MASKED = Config(**{**CONFIG.model_dump(), "protect": "distributed(least=0.7)", "epsilon": 1.0, "evidence": "none",
                   "late": False, "record": False, "clients": 10, "preset": "expert"})  # fmt: skip


@pytest.mark.parametrize(
    ("floor", "clients", "answers"), [(7, 10, True), ("8", 10, False), (7, 9, True), (7, 8, False)]
)
def test_an_owner_may_ask_for_sums_of_more_clients(floor, clients, answers, mine):
    config = MASKED.model_copy(update={"clients": clients})
    query = question()[0]
    said = ask(config, {**mine, "least-clients": floor}, common(), frame=ask_keys(query))
    assert isinstance(said, Answer) is answers, said
    if not answers:
        least = 7 if clients == 10 else 6
        expected = (
            f"a masked sum of this run may be of {least} clients (clients = {clients}, protect = "
            f"'distributed(least=0.7)'), this node's owner asks for {floor}"
        )
        assert said == Refusal("1", f"ConfigError: {expected}")
        assert not Path(mine["state-dir"]).exists()


def test_a_least_number_of_clients_is_about_masked_sums_only_and_must_be_a_number(mine):
    assert isinstance(ask(CONFIG, {**mine, "least-clients": 1000}, common()), Answer)
    assert ask(MASKED, {**mine, "least-clients": "many"}, common()).error.endswith("must be a whole number")


CENTRAL = Config(**{**CONFIG.model_dump(), "protect": "central", "epsilon": 1.0, "evidence": "none", "late": False,
                    "record": False, "preset": "expert"})  # fmt: skip


@pytest.mark.parametrize(
    ("agreed", "asked", "words"),
    [
        (CENTRAL, {"epsilon": 1000.0}, "the run has epsilon = 1000.0, this node's owner agreed to 1.0 at most"),
        (CENTRAL, {"delta": 1e-3}, "delta = 0.001"), (CENTRAL, {"rounds": 500}, "rounds = 500"),
        (CENTRAL, {"protect": "none", "epsilon": 0.0}, "protect = 'none'"), (CONFIG, {"rounds": 3}, "rounds = 3"),
        (CONFIG, {"keys": "classes", "evidence": "none"}, "keys = 'classes'"),
        (CONFIG, {"expertise": "density"}, "expertise = 'density'"), (CONFIG, {"release": "float32"}, "release = "),
        (CONFIG, {"learner": "constant"}, "learner = 'constant'"), (CONFIG, {"evidence": "none"}, "evidence = 'none'"),
    ],
)  # fmt: skip
def test_a_run_gets_no_more_than_the_owner_said_yes_to(agreed, asked, words, mine, monkeypatch):
    monkeypatch.setattr(site, "answer", lambda *given: pytest.fail("it was about to answer"))
    said = ask(agreed.model_copy(update=asked), mine, common(), agreed=agreed)
    assert words in said.error
    assert said.error.endswith("join again to agree anew")


def test_a_run_may_ask_for_less_or_learn_in_another_way(mine):
    changed = {"rounds": 1, "aggregate": "median", "learning_rate": 0.01, "learner": "linear"}
    own = {**mine, "learner": "constant"}
    assert isinstance(ask(CONFIG.model_copy(update=changed), own, common(), agreed=CONFIG), Answer)


def test_a_protection_with_known_noise_is_none(mine):
    config = Config(**{**CONFIG.model_dump(), "protect": "dp_sgd", "epsilon": 8.0, "noise": "seeded",
                       "evidence": "none", "evaluate": False})  # fmt: skip
    assert "noise = 'system'" in ask(config, {**mine, "require-protect": "any"}, common()).error


def test_a_requirement_that_nothing_meets_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'dp_sgd'"):
        site.check_requirement("dp-sgd")


def test_code_that_the_run_names_is_not_run_beside_own_data(mine, monkeypatch):
    monkeypatch.setattr(site, "answer", lambda *given: pytest.fail("it was about to be imported"))
    config = CONFIG.model_copy(update={"learner": "antigravity:fly"})
    said = ask(config, mine, common())
    assert "is code that the run names" in said.error
    assert "allow-code" in said.error


@pytest.mark.parametrize("allowed", [{"allow-code": True}, {"learner": "constant"}])
def test_unless_its_owner_allows_it_or_has_a_model_of_its_own(allowed, mine, monkeypatch):
    seen = []
    monkeypatch.setattr(site, "answer", lambda own, frame, config, known: seen.append(own.spec(config)))
    ask(CONFIG.model_copy(update={"learner": "site_model:make"}), {**mine, **allowed}, common())
    assert seen == [allowed.get("learner", "site_model:make")]


@pytest.mark.parametrize(
    "spec",
    [
        "onnx:/etc/shadow", "onnx(path='/etc/shadow', head='none')", "(onnx)(path='/etc/shadow')",
        "\uff4f\uff4e\uff4e\uff58(path='/etc/shadow')", "onnx\\\n(path='/etc/shadow')",
        "http(url='http://127.0.0.1:9/')", "http:http://127.0.0.1:9/", "(http)(url='http://127.0.0.1:9/')",
    ],
)  # fmt: skip
def test_a_file_or_an_address_that_the_run_names_is_not_opened_beside_own_data(spec, mine, monkeypatch):
    asked = CONFIG.model_copy(update={"learner": spec})
    with monkeypatch.context() as patch:
        patch.setattr(site, "answer", lambda *given: pytest.fail("it was about to be opened"))
        for allowed in ({}, {"allow-code": True}):
            assert "which no run may name" in ask(asked, {**mine, **allowed}, common()).error
    assert isinstance(ask(asked, {**mine, "learner": BANDS}, common()), Answer)


def test_a_model_that_cannot_hide_examples_is_refused_before_the_budget_is_charged(mine, tmp_path):
    private = {"protect": "dp_sgd(examples=50)", "epsilon": 8.0, "evidence": "none", "late": False, "record": False}
    config = Config(**{**CONFIG.model_dump(), **private, "preset": "expert"})
    ledger = tmp_path / "ledger"
    for spec, kind in (("forest", "SpecError"), (BANDS, "PrivacyError")):
        said = ask(config, {**mine, "learner": spec, "ledger-dir": str(ledger)}, common())
        assert said == Refusal("1", f"{kind} (see the device's log)")
        assert not ledger.exists()


PRIVATE = {
    "preset": "private", "clients": 4, "student": "none",
    "protect": "dp_sgd(rate=1.0, clip=0.1, examples=50, step=0.3)", "epsilon": 3.0, "rounds": 2,
    "learner": "linear(dimensions=5)", "local_epochs": 2,
}  # fmt: skip


def asked_in(round_, config, node_config, name, run_id):
    shared = site.shared_data(config)
    rows = len(shared.transfer)
    frame = encode_query(Query(round_, np.arange(rows), 10, shared.transfer.fingerprint), rows, "float16")
    return respond(
        frame, 0, run_config={**config.to_run_config(), "run-name": name}, node_config=node_config, run_id=run_id,
        node_id=9, common=common(),
    )  # fmt: skip


def test_a_run_that_goes_on_under_another_number_is_not_charged_again(mine):
    config = Config(**PRIVATE)
    node = {**mine, "budget-epsilon": 3.0, "budget-delta": config.delta}
    assert isinstance(asked_in(1, config, node, "run-a", 5), Answer)
    assert isinstance(asked_in(2, config, node, "run-a", 6), Answer)
    assert "budget" in asked_in(1, config, node, "run-b", 7).error.lower()
    assert "run-name must be" in asked_in(1, config, node, "../x", 8).error


def test_more_data_in_the_same_place_renew_no_budget(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDKD_HOME", str(tmp_path / "remembers"))
    config = Config(**PRIVATE)
    node = {key: value for key, value in mine.items() if key != "ledger-dir"}
    node |= {"budget-epsilon": 3.0, "budget-delta": config.delta}
    assert isinstance(asked_in(1, config, node, "run-a", 5), Answer)
    path = Path(node["data"].removeprefix("npz:"))
    kept = dict(np.load(path))
    more = {key: np.concatenate([values, values[:1]]) for key, values in kept.items()}
    np.savez(path, **more)
    assert "budget" in asked_in(2, config, node, "run-b", 6).error.lower()  # round 1 would get the same bytes again


def test_what_is_wrong_with_the_owners_model_is_not_told(mine):
    said = ask(CONFIG, {**mine, "learner": "ward7_patients:make"}, common())
    assert said == Refusal("1", "SpecError (see the device's log)")


def test_what_a_model_says_when_it_is_built_is_not_told_whoever_named_it(mine, monkeypatch):
    def finds(*given, **named):
        raise SpecError("cannot read /home/ward7/model: Permission denied")

    monkeypatch.setattr("fedkd.client.make_learner", finds)
    assert ask(CONFIG, mine, common()) == Refusal("1", "SpecError (see the device's log)")


def test_a_learner_that_cannot_be_read_is_refused_before_it_is_built(mine):
    config = CONFIG.model_copy(update={"learner": "[onnx][0](path='/etc/shadow')"})
    assert "ConfigError: cannot read" in site.refuse(terms_error(config, mine), mine, 9).error


def terms_error(config, node_config):
    with pytest.raises(ConfigError) as caught:
        site.check_terms(config, node_config, 1)
    return caught.value


def test_a_number_that_is_none_is_answered_by_the_nodes_own_name(mine):
    said = ask(CONFIG, {**mine, "partition-id": "ward 7"})
    assert said.client == "9"
    assert "ward" not in said.error


def test_another_transfer_set_is_refused(mine):
    other = dataclasses.replace(site.shared_data(CONFIG).transfer, fingerprint="00" * 32)
    assert "transfer set" in ask(CONFIG, mine, Common(other, 10)).error


def test_the_light_half_of_a_node_loads_no_framework():
    heavy = "{'flwr', 'torch', 'sklearn', 'scipy', 'rich', 'httpx', 'typer', 'jinja2'}"
    code = f"import fedkd.site\nimport sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
