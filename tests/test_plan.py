"""Bytes predicted without training are the bytes that a run measures; FedAvg is compared in numbers worked by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_strategy import HereGrid

from fedkd.config import Config, resolve
from fedkd.dataset import load, on_disk
from fedkd.errors import ConfigError, DataError, SpecError
from fedkd.fedavg import fedavg, parameters
from fedkd.flower.strategy import FederatedDistillation
from fedkd.learner import Training, make_learner
from fedkd.plan import Plan, Sent, plan, turn
from fedkd.stored import KNOWN, Stored, measures

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["clients=3", "rounds=3", "transfer=split(size=120)", "learner=constant", "student=constant", "pooled=false"]


def config_of(*sets):
    return resolve(sets=[*SMALL, *sets], environ={}).config


def measured(config, folder):
    """Bytes up and down of each round of a real run, for a client on average."""
    reports = FederatedDistillation(config).start(grid=HereGrid(config, folder)).reports
    return [[r.metrics[f"bytes_{way}"] / config.clients for way in ("up", "down")] for r in reports]


@pytest.mark.parametrize(
    "sets",
    [
        ["release=float32"],
        ["release=float16", "expertise=uniform", "feedback=none"],
        ["release=quantize(bits=3)", "broadcast=quantize(bits=3)", "feedback=student"],
        ["release=argmax", "broadcast=argmax", "evaluate=false"],
        ["release=argmax | weights(bits=4)", "select=uniform(size=40)"],
        ["release=top_k(k=2)", "select=cache_miss(size=50, duration=1)", "feedback=personal(penalty=1.0)"],
        ["preset=scarlet", "select=cache_miss(size=50, duration=5)", "replay=2"],
        ["preset=scarlet", "select=cache_miss(size=90, duration=1, store=False)", "rounds=5"],
        ["preset=scarlet", "select=cache_miss(size=50, duration=5)", "broadcast=float32"],
        ["feedback=personal(penalty=1.0)", "broadcast=float16 | delta", "learner=mlp", "local_epochs=1"],
    ],
    ids=lambda sets: " ".join(sets),
)
def test_the_plan_agrees_with_a_run(sets, tmp_path):
    config = config_of(*sets)
    predicted = [[sent.up, sent.down] for sent in plan(config).rounds]
    np.testing.assert_allclose(predicted, measured(config, tmp_path), rtol=0.01)


@pytest.mark.parametrize(
    "release",
    [
        "argmax | range_code",
        "quantize(bits=3) | range_code",
        "float16 | delta",
        "argmax | weights(bits=4) | delta | range_code",
        "float16 | zstd",
    ],
)
def test_what_can_be_guessed_is_bounded_from_above(release, tmp_path):
    if "zstd" in release:
        pytest.importorskip("zstandard")
    config = config_of(f"release={release}", "learner=forest(trees=5)", "broadcast=argmax | range_code")
    drawn = plan(config)
    assert any("release has" in reason for reason in drawn.bounds)
    found = measured(config, tmp_path)
    for (up, down), sent in zip(found, drawn.rounds, strict=True):
        assert up <= sent.up and down <= sent.down < 1.3 * down
    assert drawn.rounds[0].up < 3 * found[0][0]  # a bound that says nothing would pass as well


def test_evidence_takes_no_bytes():
    for release in ("release=float16", "release=argmax | weights(bits=4) | delta"):
        judged, alone = (plan(config_of(release, f"evidence={name}")) for name in ("neighbors", "none"))
        assert judged.rounds == alone.rounds


@pytest.mark.parametrize("broadcast", ["argmax | delta", "argmax | delta | range_code", "quantize(bits=3) | delta"])
def test_a_delta_of_feedback_is_bounded_from_above(broadcast, tmp_path):
    config = config_of("learner=forest(trees=5)", "release=argmax", f"broadcast={broadcast}")
    drawn = plan(config)
    assert any("broadcast has" in reason for reason in drawn.bounds)
    found = measured(config, tmp_path)
    assert all(down <= sent.down for (_, down), sent in zip(found, drawn.rounds, strict=True))
    assert drawn.rounds[1].down < 1.3 * found[1][1]  # a bound that says nothing would pass as well


def test_what_stays_in_the_cache_is_planned_to_be_sent_once():
    sets = ["preset=scarlet", "select=cache_miss(size=120, duration=2)", "rounds=7"]
    lean, full = ([s.down_frame for s in plan(config_of(*sets, *way)).rounds] for way in ([], ["broadcast=float32"]))
    # Bought in rounds 1, 4 and 7; told in 2 and 5, and not in between.
    assert lean[1] == full[1] > 120 * 40 and lean[4] == full[4]
    assert [a - b for a, b in zip(full, lean, strict=True)] == [0, 0, *[120 * 40 - 6] * 2, 0, *[120 * 40 - 6] * 2]


def test_a_delta_is_planned_as_if_every_label_had_changed():
    full, delta = (plan(config_of(f"release={chain}")) for chain in ("argmax", "argmax | delta"))
    assert not full.bounds and delta.bounds
    assert delta.rounds[0].up_frame == full.rounds[0].up_frame
    # density weights stay as they were, 4 bytes each; the labels cost what they cost before, and which have changed
    saved = full.rounds[2].up_frame - delta.rounds[2].up_frame
    assert 4 * 120 - 20 <= saved <= 4 * 120


def test_classes_as_keys_are_planned_too(tmp_path):
    config = resolve(preset="fd", sets=["clients=3", "rounds=2", "learner=constant"], environ={}).config
    drawn = plan(config)
    for (up, down), sent in zip(measured(config, tmp_path), drawn.rounds, strict=True):
        assert 0.9 * sent.up < up <= sent.up
        assert 0.9 * sent.down < down <= sent.down
    assert drawn.handed_out == 0


def test_parameters_are_those_that_torch_counts():
    for spec, shape in [
        ("cnn", (1, 8, 8)),
        ("cnn(width=5, hidden=7)", (3, 13, 32)),
        ("lenet", (1, 28, 28)),
        ("mlp(hidden=9)", (2, 5)),
    ]:
        made = make_learner(spec, shape=shape, classes=7, training=Training(), seed=0)
        assert parameters(spec, shape, 7) == made.parameters, spec
    assert parameters("lenet", (1, 28, 28), 10) == 21_840
    assert parameters("forest", (1, 8, 8), 10) == 0
    assert parameters("torchvision(name='resnet18')", (3, 32, 32), 10) is None
    assert parameters("site_model:make", (3, 32, 32), 10) is None


def test_known_measures_are_those_of_the_files():
    for name in ["digits"] + (["fashion_mnist"] if on_disk()["fashion_mnist"] else []):
        whole = load(name)
        assert KNOWN[name] == Stored(len(whole.x), whole.x.shape[1:], whole.classes, whole.x.dtype.itemsize)


def test_a_set_of_ones_own_is_measured_by_loading_it(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.zeros((50, 6), np.float32), y=np.arange(50) % 3)
    config = config_of(f"data=npz:{tmp_path}/own.npz", "transfer=split(size=10)")
    assert plan(config).transfer == Stored(10, (6,), 3, 4)
    assert measures(config.data, labeled=True).rows == 40  # a fifth is the test part


def test_rounds_at_which_the_cheaper_one_changes_by_hand():
    # 10 + 3 r against 5 r: 13 > 5, 16 > 10, 19 > 15, 22 > 20, 25 = 25
    assert turn([3], 5, 10) == (False, 5)
    # 1, then 4 a round, against 3 r: 1, 5, 9, 13 against 3, 6, 9, 12
    assert turn([1, 4], 3) == (True, 4)
    assert turn([3, 2], 3) == (True, None)
    assert turn([4], 3) == (False, None)


def test_sentences_about_fedavg_by_hand():
    config = resolve(sets=["learner=mlp(hidden=2)", "data=mnist"], environ={}).config
    weights = fedavg(config, (3,), 4)
    assert weights.each_way == 4 * ((3 + 1) * 2 + (2 + 1) * 4) == 80
    rounds = (Sent(1, None, 10, 5, 10, 5), Sent(1, 1, 10, 5, 30, 5))
    drawn = Plan(config, Stored(100, (3,), 4), rounds, weights)
    assert drawn.handed_out == 300
    assert drawn.sentences() == [
        "transfer set: 300 B to each client, once (100 rows of 3)",
        "FedAvg would send 80 B each way: 5.3 times more than this run in an average round",
        "messages: this run is cheaper, however many rounds there are",
        "messages and transfer set: FedAvg is cheaper up to round 2, this run from round 3 on",
    ]  # 320 and 360 against 160 and 320; 400 against 480


def test_a_mix_of_architectures_and_one_that_only_torch_knows_are_told_apart():
    mixed = plan(config_of("learner=mlp, logistic", "student=mlp")).sentences()
    assert any(
        line.startswith("FedAvg is impossible here (2 different architectures); with mlp for all") for line in mixed
    )
    unknown = plan(config_of("learner=torchvision(name='resnet18')")).sentences()
    assert any("only torch can tell" in line for line in unknown)
    refitted = plan(config_of("learner=logistic", "student=none")).sentences()
    assert "FedAvg is impossible here (logistic is refitted in each round, not averaged)" in refitted


def test_the_table_fits_a_terminal_and_names_the_cold_round():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(plan(config_of("rounds=20", "data=fashion_mnist", "transfer=split(size=6000)")).table())
    text = console.export_text()
    assert "round 1 " in text and "rounds 2-20" in text and "…" not in text


def test_a_transfer_set_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"size must be in \[1, 1396\] for 1397 train rows, got 1397"):
        plan(config_of("transfer=split(size=1397)"))


def test_the_command_prints_the_plan_and_imports_no_framework_of_learners():
    code = (
        "import sys\nsys.argv=['fedkd', 'plan', '--preset', 'tally', '--set', 'learner=cnn']\n"
        "from fedkd.commands.main import main\ntry: main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'torch', 'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "FedAvg would send 54.8 kB each way: 130 times more than this run" in done.stdout
    assert "LOADED []" in done.stdout


def test_inputs_that_a_learner_cannot_take_are_refused_as_a_run_does(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.zeros((50, 4), np.float32), y=np.arange(50) % 3)
    own = [f"data=npz:{tmp_path}/own.npz", "transfer=split(size=10)"]
    for sets in (["learner=mlp, cnn(width=4)"], ["student=cnn"]):
        with pytest.raises(
            SpecError, match=r"learner cnn.* needs images .* of at least 4x4, got \(4,\); .* use mlp, linear,"
        ):
            plan(config_of(*own, *sets))
    plan(config_of(*own, "learner=mlp, mlp, mlp, cnn", "student=none"))  # three clients: none gets the fourth


def test_an_attack_with_nobody_attacking_is_refused():
    with pytest.raises(ConfigError, match="0 of 3 clients lie"):
        plan(config_of("attack=lma(share=0.3)"))


def test_rounds_of_fedavg_name_the_model_where_it_is_not_the_clients():
    mixed = plan(config_of("rounds=1", "learner=mlp, logistic", "student=mlp")).sentences()
    assert mixed[-1].endswith("rounds of FedAvg with mlp for all")
    assert plan(config_of("rounds=1", "learner=mlp")).sentences()[-1].endswith("rounds of FedAvg")


def test_one_client_has_nobody_to_average_with():
    assert any("one client has nobody to average with" in line for line in plan(config_of("clients=1")).sentences())


def test_a_linear_model_is_counted_as_it_is_once_it_has_seen_the_transfer_set():
    from fedkd.learner import Training, make_learner

    x = np.random.default_rng(0).random((300, 1, 8, 8), np.float32)
    model = make_learner("linear(dimensions=20)", shape=(1, 8, 8), classes=10, training=Training(), seed=0)
    model.see(x)
    assert parameters("linear(dimensions=20)", (1, 8, 8), 10) == model.parameters == 210


@pytest.mark.parametrize(
    ("protect", "words"),
    [
        ("local", ["epsilon 4", "a label, kept with a chance of 0.8", "2 labels of a client, 0.04 a row"]),
        ("local_gaussian", ["a control, not for use", "noise of sd 17", "6 on the mean of all clients"]),
        ("gnmax(threshold=0.5)", ["noise multiplier 0.63", "rows are told above 0.5 of the votes"]),
        ("central", ["noise multiplier 0.6", "sd 1.4 on each mean label before smoothing"]),
    ],
)
def test_a_plan_says_how_wrong_private_labels_will_be(protect, words):
    given = {"evidence": "none", "expertise": "uniform", "late": False, "record": False, "rounds": 1, "student": "none"}
    (line,) = [
        line
        for line in plan(Config(**given, protect=protect, epsilon=8.0, clients=8)).sentences()
        if line.startswith(f"{protect}:")
    ]
    for part in words:
        assert part in line
