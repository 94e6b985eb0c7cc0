"""The experiments on privacy: their files are sweeps that can be run, and what they find is drawn."""

import xml.etree.ElementTree as ElementTree

import pytest

from fedkd.sweep import check, read_sweep
from simulations.privacy import experiments


@pytest.mark.parametrize("name", experiments.NAMES)
def test_an_experiment_is_a_sweep_with_a_question_and_a_promise_in_each_run(name, tmp_path):
    sweep = read_sweep(experiments.FOLDER / f"{name}.toml", root=tmp_path)
    check(sweep)
    assert experiments.question(name).partition("?")[1] == "?"
    assert len({job.config.seed for job in sweep.jobs}) >= 3
    assert all(job.config.protect != "none" and job.config.noise == "system" for job in sweep.jobs)


def test_a_run_of_an_experiment_comes_to_accuracies(tmp_path):
    (job, *_) = read_sweep(experiments.FOLDER / "rounds.toml", root=tmp_path).jobs
    found = experiments.once(job.config.model_copy(update={"clients": 20, "epsilon": 100.0}))
    assert found.keys() == {"student", "teacher"}
    assert found["teacher"] > 0.5


def test_a_picture_has_a_line_for_each_mechanism_and_its_name_below(tmp_path):
    sweep = read_sweep(experiments.FOLDER / "epsilon.toml", root=tmp_path)
    assert experiments.over(sweep) == "epsilon"
    found = {v: {"student": {"mean": 0.1 * i % 1}} for i, v in enumerate(sweep.variants)}
    text = experiments.drawn("epsilon", sweep, found)
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("central, partition=iid</text>") == 1
    assert text.count("local_gaussian, the control, partition=dirichlet(alpha=0.1)</text>") == 1
    assert experiments.over(read_sweep(experiments.FOLDER / "clip.toml", root=tmp_path)) == ""


def test_theory_is_not_contradicted_and_an_error_in_the_noise_is_seen():
    from simulations.privacy import theory

    right = theory.gaussian("expertise sketch", 4.0, 3000)
    planted = theory.gaussian("expertise sketch", 4.0, 3000, smaller=2.0)
    assert theory.row(right, planted)["promised"] == 4.0
    assert right.lower < 4.0 * 1.02 < planted.lower  # 1 in 100 right mechanisms is a little above


def test_owners_who_allow_little_are_not_asked_for_much():
    from simulations.privacy import budgets

    config = budgets.scene(8.0, "iid", 0)
    allowed = budgets.budgets(config.clients, 0.25)
    assert allowed.count(8.0) == 5 and budgets.budgets(20, 0.01).count(8.0) == 1
    answered, student = budgets.once(config, allowed)
    assert answered == 5
    assert student > 0.5
