"""What is known to fail before a run starts, and how it is said."""

import io
import sys

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from rich.console import Console

from fedkd import parts
from fedkd.collect import folded
from fedkd.config import Config, resolve
from fedkd.errors import ConfigError, DataError, QuorumError, SpecError
from fedkd.flower import apps, grid
from fedkd.flower.messages import QUERY, read_answer
from fedkd.preflight import check_attack, check_data, check_models, liars
from fedkd.screen import Screen, changes
from fedkd.tell import describe

SMALL = {"clients": 2, "learner": "constant", "student": "none"}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("aggregate=trimmed_mean(trim=0.9)", "'trim' must be in [0, 0.5), got 0.9"),
        ("sharpen=era(temperature=0.0)", "'temperature' must be above 0, got 0.0"),
        ("release=quantize(bits=0)", "release: mechanism 'quantize': 'bits' must be in 1..8, got 0"),
        ("broadcast=quantize(bits=9)", "broadcast: mechanism 'quantize': 'bits' must be in 1..8, got 9"),
        ("expertise=density(sharpness=0)", "'sharpness' must be above 0"),
        ("feedback=clusters(count=0)", "'count' and 'steps' must be at least 1"),
        ("feedback=personal(penalty=0)", "'penalty' must be above 0"),
        ("select=uniform(size=0)", "'size' must be at least 1, got 0"),
        ("partition=dirichlet(alpha=0)", "alpha must be positive and finite, got 0.0"),
        ("labels=gems(mix=2)", "'mix' must be in [0, 1], got 2.0"),
        ("attack=lma(share=2)", "'share' must be in [0, 1], got 2.0"),
        ("attack=lam", "unknown attack 'lam'. Did you mean 'lma'?"),
        ("defend=cap(share=0)", "'share' must be in (0, 1], got 0.0"),
        ("defend=exp_guard | cross_check", "one part that judges is enough"),
        ("augment=shift(pixels=0)", "'pixels' must be at least 1, got 0"),
        ("schedule=cosine(warmup=1)", "'warmup' must be in [0, 1), got 1.0"),
    ],
)
def test_an_option_out_of_range_is_refused_when_the_configuration_is_read(setting, sentence):
    with pytest.raises(ConfigError) as caught:
        resolve(sets=[setting], environ={})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_attack_may_name_any_class_and_boast_without_limit():
    assert resolve(sets=["attack=collude(target=9, boast=inf)"], environ={}).config.attack.startswith("collude")


def test_a_view_that_does_not_fit_the_inputs_is_refused_before_anything_is_trained(tmp_path):
    flat = tmp_path / "flat.npz"
    draw = np.random.default_rng(0)
    np.savez(flat, x=draw.random((300, 5), np.float32), y=draw.integers(0, 3, 300))
    config = Config(data=f"npz(path='{flat}')", transfer="split(size=50)", augment="flip", **SMALL)
    with pytest.raises(SpecError, match="augmentation 'flip' needs images"):
        check_data(config)


def test_a_part_that_raises_anything_else_is_refused_too(monkeypatch):
    monkeypatch.setitem(parts.aggregator._parts, "odd", lambda p, w: p[7])
    with pytest.raises(SpecError, match="aggregate 'odd' fails on two rows of three classes: index 7 is out of bounds"):
        parts.CHECKS["aggregate"]("odd")


@pytest.mark.parametrize(
    "setting",
    [
        "select=uniform(size=300)",
        "select=uniform(size=1000000000)",
        "partition=natural",
        "partition=inner_dirichlet(size=5000)",
        "partition=classes(per_client=90)",
    ],
)
def test_what_only_the_data_can_tell_is_left_to_the_data(setting):
    resolve(sets=[setting], environ={})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"transfer": "split(size=5000)"}, "size must be in [1, 1396] for 1397 train rows, got 5000"),
        ({"select": "uniform(size=401)"}, "size must be in [1, 400], the rows of the transfer set; got 401"),
        ({"partition": "classes(per_client=11)"}, "per_client must be in [1, 10], got 11"),
        ({"data": "npz:nan.npz"}, "NaN or infinity in 1 of 6 rows"),
        ({"data": "npz:none.npz"}, "none.npz"),
    ],
)
def test_data_that_cannot_be_loaded_cut_or_dealt_is_refused_before_anything_starts(
    settings, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((6, 4), np.float32)
    x[3, 1] = np.nan
    np.savez("nan.npz", x=x, y=np.arange(6) % 2)
    with pytest.raises(DataError) as caught:
        check_data(Config(**(SMALL | settings)))
    assert sentence in str(caught.value)


@pytest.fixture
def site_model(tmp_path, monkeypatch):
    """A user's module with factories that fail in their own ways."""
    (tmp_path / "site_model.py").write_text(
        "def wants(shape, foo): return None\n"
        "def breaks(shape):\n"
        "    raise ValueError('no such\\nwidth')\n"
        "def inside(shape): return wants(shape)\n"
        "def good(classes):\n"
        "    from fedkd.learner import Constant\n"
        "    return Constant(classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("site_model", None)


@pytest.mark.parametrize(
    ("learner", "sentence"),
    [
        ("site_model:wants", "learner 'site_model:wants': wants() wants 'foo'; fedkd offers shape, classes, seed"),
        ("site_model:breaks", "learner 'site_model:breaks': ValueError: no such width (site_model.py:3)"),
        ("site_model:inside", "TypeError: wants() missing 1 required positional argument: 'foo' (site_model.py:4)"),
        ("site_model:god", "site_model has no function 'god'. Did you mean 'good'?"),
        ("site_mdel:good", "no module named 'site_mdel' here"),
    ],
)
@pytest.mark.parametrize("role", ["learner", "student"])
def test_a_model_that_cannot_be_built_is_one_line_that_says_why(learner, sentence, role, site_model):
    config = Config(**(SMALL | {role: learner}))
    with pytest.raises(SpecError) as caught:
        check_models(config, check_data(config))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_learner_that_no_client_gets_is_not_built(site_model):
    config = Config(**(SMALL | {"learner": "constant, site_model:good, site_model:breaks"}))
    check_models(config, check_data(config))


def test_an_exception_without_words_or_a_users_line_is_its_type():
    assert describe(ValueError()) == "ValueError"


def asked(node_config, tmp_path):
    """Return what a client of a learner that fails says when it is asked."""
    config = Config(clients=2, learner="site_model:breaks", student="none").to_run_config()
    settings = {"partition-id": 0, "state-dir": str(tmp_path), **node_config}
    grid._identify()  # as in a worker
    query = Message(RecordDict(), 2, QUERY)
    return read_answer(apps.answer_query(query, Context(1, 2, settings, RecordDict(), config)).content)[3]


def test_in_a_simulation_an_error_of_the_users_model_is_told_with_its_place(site_model, tmp_path, monkeypatch):
    import site_model as module

    monkeypatch.setattr(apps, "read_query", lambda message: module.breaks(()))
    assert asked({"simulated": True}, tmp_path) == "ValueError: no such width (site_model.py:3)"


@pytest.mark.parametrize("node_config", [{}, {"data": "npz:mine.npz"}, {"data": "npz:mine.npz", "simulated": True}])
def test_from_a_device_only_the_type_of_an_error_leaves(node_config, site_model, tmp_path, monkeypatch):
    import site_model as module

    monkeypatch.setattr(apps, "read_query", lambda message: module.breaks(()))
    assert asked(node_config, tmp_path) == "ValueError"


def test_equal_errors_of_clients_are_one_line():
    assert folded({str(k): "no memory" for k in range(8)}, 8) == ["all 8 clients: no memory"]
    assert folded({"0": "no memory", "10": "no memory", "2": "no disk"}, 12) == [
        "clients 0, 10: no memory",
        "client 2: no disk",
    ]
    assert folded({str(k): f"rows of client {k} are NaN" for k in range(2)}, 2) == [
        "all 2 clients: rows of this client are NaN"
    ]
    assert folded({str(k): "x" for k in range(11)}, 20) == ["clients 0, 1, 2, 3, 4, 5, 6, 7 and 3 more: x"]


def shown(config, events, error=None):
    stream = io.StringIO()
    screen = Screen(config, "a-run", Console(file=stream, width=200, force_terminal=False))
    with screen:
        for event, facts in events:
            screen(event, facts)
        screen.__exit__(type(error), error, None)
    return stream.getvalue()


def test_a_run_that_never_starts_shows_no_table():
    assert shown(Config(), []) == ""


def test_errors_of_a_round_are_folded_and_left_to_the_error_that_ends_it():
    events = [("asked", {"round": 1, "clients": 3})]
    events += [("answer", {"client": k, "error": "no disk"}) for k in range(3)]
    assert shown(Config(clients=3), [*events, ("distill", {"round": 1})]).count("all 3 clients: no disk") == 1
    stream = io.StringIO()
    with (
        pytest.raises(QuorumError),
        Screen(Config(clients=3), "a-run", Console(file=stream, force_terminal=False)) as screen,
    ):
        for event, facts in events:
            screen(event, facts)
        raise QuorumError("round 1: 0 of 3")
    assert "no disk" not in stream.getvalue()


def test_the_header_says_what_the_preset_does_not():
    assert changes(Config(clients=2, seed=3, output="/somewhere")) == ""
    assert changes(Config(preset="ds_fl", sharpen="argmax")) == ", sharpen = argmax"
    many = Config(local_epochs=1, distill_epochs=1, feedback_epochs=1)
    assert changes(many) == ", 3 settings changed"
    assert "preset expert, 3 settings changed\n" in shown(many, [("start", {})])


def test_the_header_lists_the_models_that_are_dealt():
    assert "  clients   1: cnn; student mlp\n" in shown(Config(clients=1, student="mlp"), [("start", {})])


def test_an_attack_with_nobody_attacking_is_refused():
    few = Config(**(SMALL | {"clients": 1, "attack": "lma(share=0.2)"}))
    with pytest.raises(ConfigError, match=r"attack = 'lma\(share=0.2\)': 0 of 1 client lie.*raise share or clients"):
        check_data(few)
    check_attack(Config(clients=4, attack="lma(share=0.0)"))  # nobody was asked for: the honest end of a sweep
    assert liars(Config(clients=10, attack="lma(share=0.35)")) == 3


def test_the_header_says_how_many_lie_and_who_is_left_out():
    assert "1 of 5 lie, attack lma" in shown(Config(clients=5, attack="lma"), [("start", {})])
    stream = io.StringIO()
    with Screen(Config(), "x", Console(file=stream, width=200, force_terminal=False), without=[3]) as screen:
        screen("start", {})
    assert "  clients   7 of 8: " in stream.getvalue() and "  without   3\n" in stream.getvalue()
