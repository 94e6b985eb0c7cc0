"""How privacy is had: what goes together, what a run costs before it starts, and what it may say afterwards."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fedkd.config import Config
from fedkd.errors import ConfigError, PrivacyError, SpecError
from fedkd.events import Gaussian, NonPrivate, NoOp, RandomizedResponse, SampledGaussian
from fedkd.privacy import responses
from fedkd.privacy.accountant import spent
from fedkd.privacy.report import files_of, rounded_up, spent_in, statement
from fedkd.protect import check_classes, demand, doubtful_delta, protection, protection_of, spending, steps_in_a_round

DP_SGD = {"protect": "dp_sgd", "epsilon": 3.0, "learner": "linear", "expertise": "uniform", "evidence": "none"}
CENTRAL = {
    "protect": "central",
    "epsilon": 3.0,
    "expertise": "uniform",
    "evidence": "none",
    "record": False,
    "late": False,
}
VOTES = {**CENTRAL, "protect": "gnmax"}
LOCAL = {"protect": "local(classes=10)", "epsilon": 3.0, "expertise": "uniform"}


def read(**given):
    return Config.read(given, where="test")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**DP_SGD, "epsilon": 0.0}, "epsilon: protect = 'dp_sgd' needs a budget above 0"),
        ({**DP_SGD, "epsilon": -1.0}, "epsilon must be at least 0, got -1.0"),
        ({**DP_SGD, "delta": 1.0}, "delta must be below 1, got 1.0"),
        ({"epsilon": 1.0}, "epsilon: 1 needs a protection, as in protect = 'dp_sgd'"),
        ({**DP_SGD, "expertise": "density"}, "expertise: 'density' reads private data, which dp_sgd does not cover"),
        ({**DP_SGD, "evidence": "neighbors"}, "evidence: 'neighbors' reads private data beside the model"),
        ({**DP_SGD, "learner": "linear, forest"}, "learner: 'forest' cannot learn by DP-SGD; use one of linear"),
        ({**DP_SGD, "learner": "torchvision"}, "learner: 'resnet18' has BatchNorm, which mixes examples"),
        ({**DP_SGD, "learner": "mlp, torchvision(name='vgg11_bn')"}, "'vgg11_bn' has BatchNorm"),
        ({**DP_SGD, "keys": "classes", "student": "none"}, "keys: 'classes' are about private samples"),
        ({**DP_SGD, "attack": "lma"}, "attack: a guarantee is about honest clients"),
        ({**DP_SGD, "protect": "dp_sgd(rate=0.0)"}, "'rate' must be above 0 and at most 1, got 0.0"),
        ({**DP_SGD, "protect": "dp_sdg"}, "unknown protection 'dp_sdg'. Did you mean 'dp_sgd'?"),
        ({**DP_SGD, "noise": "sytem"}, "noise: must be one of system, seeded, got 'sytem'. Did you mean 'system'?"),
        ({**VOTES, "expertise": "density"}, "expertise: protect = 'gnmax' counts every client alike"),
        ({**LOCAL, "expertise": "density"}, "expertise: protect = 'local(classes=10)' counts every client alike"),
        ({**LOCAL, "protect": "local_gaussian", "release": "argmax"}, "release: label would cut noisy soft labels"),
        ({**CENTRAL, "expertise": "density", "release": "float16 | weights"}, "release: levels of weights are longer"),
        ({**LOCAL, "defend": "budget"}, "defend: 'budget' reads single ballots beside the noisy sum"),
        ({**LOCAL, "protect": "local(labels=0)"}, "'labels' must be above 0"),
        ({**CENTRAL, "protect": "central(power=2.0)"}, "'power' must be above 0 and at most 1, got 2.0"),
        ({**CENTRAL, "protect": "gnmax(threshold=1.5)"}, "'threshold' must be in [0, 1], got 1.5"),
        ({**CENTRAL, "aggregate": "median"}, "aggregate: protect = 'central' has its own sum"),
        ({**CENTRAL, "defend": "budget"}, "defend: 'budget' reads single ballots beside the noisy sum"),
        ({**CENTRAL, "feedback": "clusters"}, "feedback: 'clusters' is made of single ballots"),
        ({**CENTRAL, "release": "argmax | delta"}, "release: delta makes sizes and checkpoints tell of single ballots"),
        ({**CENTRAL, "late": True}, "late: a client that answers late may be counted twice"),
        ({**DP_SGD, "local_epochs": 0}, "local_epochs: 0 learns nothing"),
        ({**CENTRAL, "record": True}, "record: keeps every ballot as it came, without noise"),
        ({**CENTRAL, "protect": "central(clip=2.0)"}, "'clip' must be above 0 and at most 1, got 2.0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        read(**given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        DP_SGD,
        CENTRAL,
        VOTES,
        {**CENTRAL, "protect": "gnmax(threshold=0.5, test=2.0)"},
        LOCAL,
        {**LOCAL, "protect": "local(labels=30, classes=3)"},
        {**LOCAL, "protect": "local_gaussian"},
    ],
)
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_the_noise_is_what_the_budget_demands_and_no_more(given, epsilon):
    config = read(**{**given, "epsilon": epsilon, "rounds": 4})
    budget = spending(config)
    used = spent(spent_in(budget, 4), config.delta)
    assert 0.98 * epsilon < used <= epsilon
    assert spent(spent_in(budget, 5), config.delta) > epsilon


def test_dp_sgd_counts_every_step_of_every_round():
    config = read(**{**DP_SGD, "protect": "dp_sgd(rate=0.25)", "local_epochs": 3, "rounds": 2})
    budget = spending(config)
    assert budget.steps == steps_in_a_round(3, 0.25) == 12
    (event,) = budget.round
    assert isinstance(event, SampledGaussian) and (event.rate, event.count) == (0.25, 12)


@pytest.mark.parametrize("learner", ["cnn", "mlp, lenet, linear", "my.models:net", "torchvision(name='vgg11')"])
def test_networks_may_learn_privately_as_far_as_their_names_tell(learner):
    assert read(**{**DP_SGD, "learner": learner}).learner == learner


def test_a_private_sketch_is_paid_once_and_leaves_less_for_training():
    plain, sketched = (spending(read(**{**DP_SGD, "expertise": e})) for e in ("uniform", "private_sketch(sigma=5.0)"))
    assert plain.once == () and sketched.once == (Gaussian(5.0),)
    assert sketched.noise_multiplier > plain.noise_multiplier


def test_a_threshold_is_paid_as_if_every_row_were_tested_and_told():
    specs = [{**CENTRAL, "protect": protect} for protect in ("gnmax", "gnmax(threshold=0.5, test=2.0)")]
    plain, confident = (spending(read(**spec)) for spec in specs)
    told, tested = confident.round
    assert tested.noise_multiplier == pytest.approx(2 * told.noise_multiplier)
    # 1 / z^2 + 1 / (2 z)^2 is what one Gaussian may cost.
    assert told.noise_multiplier == pytest.approx(plain.noise_multiplier * math.sqrt(1.25), rel=1e-3)


def test_few_labels_are_mostly_true_and_many_mostly_not():
    specs = [{**LOCAL, "protect": f"local(labels={n})", "rounds": 1} for n in (1, 100)]
    few, many = (1 / spending(read(**spec)).noise_multiplier for spec in specs)
    assert few == pytest.approx(3.0, rel=1e-3) and many < 0.2
    (event,) = spending(read(**LOCAL, rounds=3)).round
    assert event == RandomizedResponse(10, event.epsilon, 2)
    assert responses.epsilon_of(10, event.epsilon, 6, 1e-5) == pytest.approx(3.0, rel=1e-3)


def test_what_a_client_made_its_ballot_of_is_its_own_affair_where_all_of_it_is_hidden():
    for protect in ("central", "gnmax"):
        assert read(**{**CENTRAL, "protect": protect, "evidence": "neighbors"}).evidence == "neighbors"
    assert read(**{**CENTRAL, "expertise": "density"}).expertise == "density"
    assert read(**{**LOCAL, "evidence": "neighbors", "release": "argmax | range_code", "late": True}).late
    sketch = spending(read(**{**CENTRAL, "expertise": "private_sketch"}))
    assert sketch.once == () and sketch.round == spending(read(**CENTRAL)).round


def test_who_answers_is_no_secret_where_a_client_adds_the_noise_itself():
    told = statement(read(**LOCAL), 3)
    assert (told["unit"], told["neighbors"]) == ("client", "replace_one")
    assert "can tell whether a client holds its data or any other in at most" in told["attacker"]
    assert any("whether a client takes part" in line for line in told["not_covered"])


def test_a_budget_for_other_classes_is_refused():
    check_classes(read(**LOCAL), 10)
    with pytest.raises(ConfigError, match=r"is for 10 classes, and data has 3; write local\(classes=3\)"):
        check_classes(read(**LOCAL), 3)


def test_a_run_without_protection_says_none_and_infinite():
    told = statement(Config(), 3)
    assert told["guarantee"] == "NONE" and told["epsilon"] == "infinite"
    assert "Epsilon is infinite" in files_of(told)["privacy_report.md"]


@pytest.mark.parametrize("given", [DP_SGD, CENTRAL, {**CENTRAL, "protect": "gnmax(threshold=0.6)"}, LOCAL])
def test_a_statement_has_everything_that_belongs_to_an_epsilon(given):
    told = statement(read(**given), 3)
    assert 0 < told["epsilon"] <= 3.0 <= told["epsilon_by_rdp"] * 1.01
    for key in ("delta", "unit", "neighbors", "adversary", "assumptions", "not_covered", "attacker", "events"):
        assert told[key], key
    files = files_of(told)
    assert json.loads(files["privacy_report.json"]) == told
    assert f"epsilon {told['epsilon']:g} of the budget 3, by the tightest accountant" in files["privacy_report.md"]
    for word in (told["unit"], told["neighbors"], told["adversary"], *told["not_covered"]):
        assert word in files["privacy_report.md"]


def test_seeded_noise_guarantees_nothing_and_says_so():
    told = statement(read(**DP_SGD, noise="seeded"), 3)
    assert told["epsilon"] == "infinite" and told["guarantee"].startswith("NO PRIVACY")


def test_more_rounds_are_another_run_where_privacy_is_promised():
    assert read(**DP_SGD, rounds=3).identity() != read(**DP_SGD, rounds=4).identity()
    assert read(rounds=3).identity() == read(rounds=4).identity()


def test_every_protection_is_described_in_full():
    for name in protection.names():
        chosen = protection_of(Config.model_construct(protect=name))
        assert (chosen.unit is None) == (name == "none")
        assert name == "none" or (chosen.neighbors and chosen.adversary and chosen.open and chosen.assumptions)


def test_no_learner_is_trusted_to_be_private_that_is_not():
    from fedkd.learner import Training, make_learner, private_trainer

    forest = make_learner("forest", shape=(4,), classes=2, training=Training(), seed=0)
    with pytest.raises(SpecError, match="learner 'forest' cannot learn by DP-SGD"):
        private_trainer(forest, "forest")


def test_without_protection_a_release_says_that_it_is_not_private(tmp_path):
    from simulations.scene import play

    reports = play("expert", clients=2, rounds=1, learner="mlp", student="mlp", local_epochs=1, distill_epochs=1)
    assert NonPrivate() != SampledGaussian(0.1, 1.0)
    assert np.isfinite(reports[0].metrics["student"])


def test_the_server_takes_no_answer_that_the_budget_does_not_cover():
    config = read(**DP_SGD, rounds=2)
    (most,) = spending(config).round
    demand(config, most, "client 3")
    demand(config, NoOp(), "client 3")
    demand(config, replace(most, count=most.count - 1, noise_multiplier=2 * most.noise_multiplier), "client 3")
    for event in (
        NonPrivate(),
        replace(most, count=most.count + 1),
        replace(most, noise_multiplier=most.noise_multiplier / 2),
        replace(most, rate=2 * most.rate),
        replace(most, fixed=True),
        Gaussian(most.noise_multiplier),
    ):
        with pytest.raises(PrivacyError, match=r"client 3 answered with .*, which the budget does not cover"):
            demand(config, event, "client 3")
    demand(Config(), NonPrivate(), "client 3")


def test_the_server_takes_no_label_that_is_too_true():
    config = read(**LOCAL, rounds=2)
    (most,) = spending(config).round
    for less in (most, NoOp(), replace(most, count=1), replace(most, epsilon=most.epsilon / 2)):
        demand(config, less, "client 3")
    wrong = (replace(most, epsilon=most.epsilon * 1.001), replace(most, count=3), replace(most, classes=3))
    for event in (*wrong, NonPrivate(), Gaussian(9.0)):
        with pytest.raises(PrivacyError, match="which the budget does not cover"):
            demand(config, event, "client 3")
    noisy = read(**{**LOCAL, "protect": "local_gaussian"})
    (most,) = spending(noisy).round
    demand(noisy, most, "client 3")
    with pytest.raises(PrivacyError):
        demand(noisy, Gaussian(most.noise_multiplier / 2), "client 3")


def test_a_protected_run_says_nothing_of_clients_that_was_not_accounted_for(tmp_path):
    from fedkd.engine import run_in_process
    from fedkd.report import write_report

    config = read(
        **DP_SGD, clients=3, rounds=1, student="linear", local_epochs=1, pooled=False, output=str(tmp_path / "run")
    )
    result = run_in_process(config, workers=1)
    data = result.summary["data"]
    assert data["held"] is None and data["private"] is None
    assert not any("outlier" in row or "trust" in row for r in result.reports for row in r.clients.values())
    assert all(row["local"] is None for r in result.reports for row in r.clients.values())
    assert result.summary["privacy"]["epsilon"] <= 3.0
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "epsilon" in page and "not sent (protect)" in page
    told = (tmp_path / "run" / "privacy_report.md").read_text(encoding="utf-8")
    assert "one example" in told and "Not covered" in told
    assert {path.name for path in (tmp_path / "run" / "clients").glob("ledger-?")} == {
        "ledger-0",
        "ledger-1",
        "ledger-2",
    }


SCENE = {
    **CENTRAL, "epsilon": 50.0, "clients": 20, "rounds": 2, "learner": "linear(dimensions=20)", "student": "linear",
    "partition": "iid", "pooled": False,
}  # fmt: skip


def test_weights_of_density_stay_inside_the_noisy_sum():
    from simulations.scene import play

    reports = play("expert", **{**SCENE, "expertise": "density", "evidence": "neighbors"})
    assert reports[-1].metrics["student"] > 0.6


def test_randomized_answers_teach_and_say_nothing_else():
    from simulations.scene import play

    settings = {**SCENE, "protect": "local(labels=20)", "epsilon": 150.0}
    reports = play("expert", **settings)
    assert reports[-1].metrics["student"] > 0.5
    assert reports[-1].metrics["coverage"] == 1.0  # 20 clients, 20 labels each: every one of 400 rows once


def test_noise_on_each_clients_soft_labels_destroys_them():
    from simulations.scene import play

    reports = play("expert", **{**SCENE, "protect": "local_gaussian", "epsilon": 8.0, "rounds": 1, "student": "none"})
    assert reports[-1].metrics["ensemble"] < 0.5


def test_what_votes_really_cost_is_left_to_the_servers_owner_alone(tmp_path):
    from fedkd.engine import run_in_process
    from fedkd.report import write_report

    run = tmp_path / "run"
    given = {**SCENE, "protect": "gnmax(threshold=0.5, smooth=False)", "clients": 6, "epsilon": 20.0}
    config = read(**given, output=str(run))
    result = run_in_process(config, workers=1)
    note = json.loads((run / "privacy_private.json").read_text(encoding="utf-8"))
    assert set(note["rounds"]) == {"1", "2"} and "itself private" in note["PRIVATE"]
    assert 0 < note["data_dependent_epsilon"] < result.summary["privacy"]["epsilon_by_rdp"]
    assert 19.9 < result.summary["privacy"]["epsilon"] <= 20.0
    number = str(note["data_dependent_epsilon"])[:8]
    told = [path for path in run.iterdir() if path.is_file() and path.name != "privacy_private.json"]
    told.append(write_report(run))
    assert not any(number.encode() in path.read_bytes() for path in told)
    assert (run / "privacy_private.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("protect", ["central(clip=0.3)", "gnmax"])
def test_a_central_run_learns_from_the_noisy_sum_only(protect):
    from simulations.scene import play

    scene = {
        **CENTRAL, "protect": protect, "epsilon": 50.0, "clients": 20, "rounds": 2, "learner": "linear(dimensions=20)",
        "student": "linear", "partition": "iid", "pooled": False,
    }  # fmt: skip
    reports = play("expert", **scene)
    assert reports[-1].metrics["student"] > 0.6
    assert "outlier" not in reports[-1].clients["0"]
    other = play("expert", **scene)
    assert other[-1].metrics["teacher_entropy"] != reports[-1].metrics["teacher_entropy"] or protect == "gnmax"
    seeded = [play("expert", **scene, noise="seeded")[-1].metrics for _ in range(2)]
    assert seeded[0]["student_nll"] == seeded[1]["student_nll"]


def test_a_delta_that_may_fail_for_somebody_is_warned_of():
    assert doubtful_delta(read(**DP_SGD, clients=8)) == []
    (warning,) = doubtful_delta(read(**CENTRAL, delta=0.01, clients=100))
    assert warning.startswith("delta = 0.01 is not below 1 / 100 clients")
    (warning,) = doubtful_delta(read(**DP_SGD, delta=0.0013, clients=8))
    assert "1 / 800 examples" in warning
    told = statement(read(**DP_SGD, delta=0.0013, clients=8), 1)
    assert told["warnings"] == [warning] and warning in files_of(told)["privacy_report.md"]


def test_an_epsilon_is_never_printed_smaller_than_it_is():
    assert rounded_up(7.99971) == 7.9998 and rounded_up(3.0) == 3.0
