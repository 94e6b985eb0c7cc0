"""A run again without its clients: equal where nothing changed, and honest where something did."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fedkd.client import Site, answer
from fedkd.collect import Reply
from fedkd.commands import main as cli
from fedkd.config import Config, Resolved
from fedkd.errors import CheckpointError, ConfigError, DataError, FedkdError
from fedkd.federation import federation
from fedkd.files import load_arrays, write_atomic
from fedkd.learner import set_threads
from fedkd.recording import path_of, save_round
from fedkd.records import Query, Release, Teacher
from fedkd.replay import Replayed, caveats, changed, hit_rate, open_recording, replay, value_caveats
from fedkd.report import write_report
from fedkd.report.compare import compare_runs
from fedkd.rounds import Evaluation, Loop
from fedkd.rundir import RunDirectory
from fedkd.scoreboard import build_student, summarize
from fedkd.softlabels import one_hot

TINY = {"rounds": 2, "clients": 3, "transfer": "split(size=60)", "learner": "logistic, constant", "pooled": False,
        "student": "mlp(hidden=8)", "local_epochs": 1, "distill_epochs": 2, "feedback_epochs": 1}  # fmt: skip


class Clients:
    """All clients of a federation, called as functions; those in ``silent`` are not there."""

    def __init__(self, config, shared, folder, silent=()):
        self.config, self.waiting, self.open_rounds = config, [], 0
        sites = (
            Site(k, *shared.private(k), shared.dataset.classes, shared.transfer, shared.test(), folder / f"{k}.st")
            for k in range(config.clients)
        )
        self.sites = [site for site in sites if site.key not in silent]

    def ask(self, round_, frame, personal, *rest):
        for site in self.sites:
            name = str(site.key)
            done = answer(site, personal.get(name, frame), self.config)
            self.waiting.append(
                Reply(round_, name, done.frame, None, done.accuracy, len(done.frame), 0.1, name)
            )  # fmt: skip
        return {str(site.key): len(frame) for site in self.sites}

    def open(self, round_):
        return len(self.waiting)

    def poll(self, timeout):
        here, self.waiting = self.waiting, []
        return here


def run(path, *, silent=(), stop_after=None, **keys):
    """Run a tiny federation in this process and leave its run directory at ``path``."""
    config = Config(**{**TINY, **keys, "output": str(path)})
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    directory, student = RunDirectory(path), build_student(config, shared)
    set_threads(1)
    directory.begin(config)
    loop = Loop(
        config,
        shared.transfer,
        shared.dataset.classes,
        student,
        evaluation=Evaluation(shared.test(), shared.truth),
        public_labels=shared.truth if config.labels != "none" else None,
        ballots=path / "ballots" if config.record else None,
        observe=lambda event, facts: directory.append(facts["report"]) if event == "report" else None,
    )
    clients = Clients(config, shared, directory.clients, silent)
    for _ in range(stop_after or config.rounds):
        loop.step(clients)
    if stop_after is None:
        directory.finish(summarize(config, shared, student, loop.state), student)
    return path


def again(path, *sets, **options):
    recording = open_recording(RunDirectory(path))
    return replay(recording, changed(recording, sets), **options)


def same_student(a, b):
    states = [path.student.state() if hasattr(path, "student") else load_arrays(path)[0] for path in (a, b)]
    return all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two rounds with feedback, which several tests replay."""
    return run(tmp_path_factory.mktemp("runs") / "base")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One round."""
    return run(tmp_path_factory.mktemp("runs") / "single", rounds=1)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"release": "quantize(bits=2)", "sharpen": "gate", "select": "cache_miss(size=40)", "replay": 2},
        {"labels": "gems", "select": "wrong(size=30)", "feedback": "student", "release": "argmax"},
        {"select": "uncertain(size=25)", "feedback": "clusters", "expertise": "uniform", "late": False},
        {
            "keys": "classes",
            "student": "none",
            "expertise": "uniform",
            "evidence": "none",
            "feedback": "others",
            "release": "float32",
        },
    ],
    ids=["plain", "cache", "gems", "uncertain", "classes"],
)
def test_a_replay_with_nothing_changed_is_the_run_bit_for_bit(tmp_path, keys):
    path = run(tmp_path / "original", **keys)
    done = again(path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    mine = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r["metrics"], r["clients"]) for r in mine] == [
        (r["round"], r["metrics"], r["clients"]) for r in lines
    ]
    assert done.summary["replay_of"] == {
        "run": "original", "changed": {}, "without": [], "identical": True, "exact": True}  # fmt: skip
    assert done.summary["scoreboard"] == json.loads((path / "summary.json").read_text())["scoreboard"]
    assert done.notes == ["Nothing was changed: student and metrics equal those of original, bit for bit."]
    if done.student is not None:
        assert (done.path / "student.safetensors").read_bytes() == (path / "student.safetensors").read_bytes()


def test_one_round_with_another_teacher_equals_a_run_with_it(tmp_path, single):
    keys = {"aggregate": "log_mean", "sharpen": "era(temperature=0.2)", "distill": "mae", "distill_epochs": 3}
    real = run(tmp_path / "real", rounds=1, **keys)
    done = again(single, *(f"{key}={value}" for key, value in keys.items()))
    assert (done.path / "student.safetensors").read_bytes() == (real / "student.safetensors").read_bytes()
    assert not same_student(done, single / "student.safetensors")
    assert done.summary["replay_of"]["exact"] is True
    assert done.summary["replay_of"]["changed"]["aggregate"] == ["mean", "log_mean"]
    assert done.notes == ["Exact: a run with these settings would have made the same student."]


def test_without_feedback_a_removed_client_leaves_no_trace(tmp_path):
    path = run(tmp_path / "all", feedback="none")
    real = run(tmp_path / "two", feedback="none", silent=[1])
    done = again(path, without=[1])
    assert (done.path / "student.safetensors").read_bytes() == (real / "student.safetensors").read_bytes()
    assert done.summary["replay_of"]["exact"] is True
    assert set(done.summary["clients"]) == {"0", "2"}
    assert done.reports[0].metrics["answered"] == 2
    assert not same_student(done, path / "student.safetensors")


def test_with_feedback_a_removed_client_lives_on_in_the_others_and_the_replay_says_so(tmp_path, base):
    real = run(tmp_path / "two", silent=[1])
    done = again(base, without=[1])
    assert not same_student(done, real / "student.safetensors")
    assert done.summary["replay_of"]["exact"] is False
    first, second = done.summary["warnings"][:2]
    assert first.startswith("NOT exact (without client 1; feedback = teacher): exact for round 1; later rounds: ")
    assert "What client 1 taught the others" in second
    first_round = [json.loads((path / "metrics.jsonl").read_text().splitlines()[0]) for path in (real, done.path)]
    assert first_round[0]["metrics"]["student"] == first_round[1]["metrics"]["student"]


def test_another_seed_is_another_student_of_the_same_federation(single):
    done = again(single, "seed=5")
    assert done.reports[0].metrics["ensemble"] == open_recording(RunDirectory(single)).reports[0].metrics["ensemble"]
    assert not same_student(done, single / "student.safetensors")
    assert "seed = 5 is the student's only" in done.summary["warnings"][0]


def test_another_student_learns_from_the_rows_that_were_asked_not_from_those_it_would_ask(tmp_path):
    path = run(tmp_path / "doubt", select="uncertain(size=25)", feedback="none")
    done = again(path, "student=mlp(hidden=3)", "seed=8")
    asked = open_recording(RunDirectory(path)).reports
    assert [r.metrics["ensemble"] for r in done.reports] == [r.metrics["ensemble"] for r in asked]
    assert "NOT exact (select = uncertain(size=25))" in done.summary["warnings"][1]


def test_a_stopped_run_is_replayed_as_far_as_it_came(tmp_path):
    done = again(run(tmp_path / "stopped", stop_after=1))
    assert [report.round for report in done.reports] == [1]
    assert done.summary["warnings"][0] == "1 of 2 rounds were replayed."
    assert done.summary["replay_of"]["identical"] is None


def test_fewer_rounds_can_be_replayed_and_more_cannot(base):
    assert len(again(base, "rounds=1").reports) == 1
    with pytest.raises(ConfigError, match="at most 2, the rounds recorded, got 3"):
        again(base, "rounds=3")


def test_report_and_compare_read_a_replay(base):
    done = again(base, "sharpen=power(beta=3.0)", name="sharper")
    assert done.path == base.parent / "sharper"
    assert "power(beta=3.0)" in write_report(done.path).read_text()
    table = compare_runs([base, done.path]).settings()
    assert table["sharpen"] == ["none", "power(beta=3.0)"]
    line = next(line for line in (done.path / "config.toml").read_text().splitlines() if line.startswith("sharpen"))
    assert line.endswith("# replay, server only")
    with pytest.raises(ConfigError, match="'sharper' exists already"):
        again(base, name="sharper")


@pytest.mark.parametrize("key", ["release=argmax", "learner=mlp", "feedback=none", "expertise=uniform", "clients=2"])
def test_what_clients_answer_cannot_be_changed_and_the_error_names_the_key(base, key):
    before = sorted(base.parent.iterdir())
    with pytest.raises(ConfigError, match=rf"--set {key.partition('=')[0]}: clients would have to answer again") as got:
        again(base, key)
    assert "\n" not in str(got.value)
    assert sorted(base.parent.iterdir()) == before


def test_a_typo_names_the_nearest_key(base):
    with pytest.raises(ConfigError, match="Did you mean 'sharpen'"):
        again(base, "sharpn=era")


def test_a_client_that_never_answered_or_all_of_them_cannot_be_removed(base):
    with pytest.raises(ConfigError, match="no ballots of this client; the run has those of 0, 1, 2"):
        again(base, without=[3])
    with pytest.raises(ConfigError, match="at least one client"):
        again(base, without=[0, 1, 2])


def test_a_run_without_ballots_a_replay_and_an_empty_run_are_one_line(tmp_path, single):
    bare = run(tmp_path / "bare", rounds=1, record=False)
    assert not (bare / "ballots").exists()
    with pytest.raises(CheckpointError, match="'bare' has no ballots of round 1: its record is false"):
        again(bare)
    with pytest.raises(CheckpointError, match="or it is a replay"):
        again(again(single).path)
    begun = tmp_path / "begun"
    RunDirectory(begun).begin(Config(output=str(begun)))
    with pytest.raises(DataError, match="no finished round"):
        again(begun)


def test_ballots_of_another_transfer_set_are_refused(tmp_path):
    path = run(tmp_path / "moved", rounds=1)
    write_atomic(path / "config.toml", Resolved(Config(**TINY, seed=1), {}).to_toml().encode())
    with pytest.raises(CheckpointError, match="has the data changed"):
        again(path)


def config(**keys):
    return Config(**{**TINY, **keys})


@pytest.mark.parametrize(
    ("run_with", "changes", "without", "words"),
    [
        ({}, {}, [], None),
        ({"rounds": 1}, {"aggregate": "vote"}, [2], None),
        ({"feedback": "none"}, {"aggregate": "vote", "distill": "mae"}, [2], None),
        ({}, {"aggregate": "vote"}, [], "(aggregate; feedback = teacher): exact for round 1; later rounds: clients"),
        ({}, {"student": "cnn", "distill_epochs": 9}, [], None),  # what went back did not depend on the student
        ({"feedback": "student"}, {"student": "cnn"}, [], "(student; feedback = student)"),
        ({"feedback": "clusters"}, {"sharpen": "era"}, [], None),  # clusters are made of ballots
        ({"feedback": "clusters"}, {}, [0, 2], "(without clients 0, 2; feedback = clusters)"),
        ({"labels": "gems"}, {"distill_epochs": 9}, [], "(distill_epochs; feedback = teacher)"),
        ({}, {"distill": "mae"}, [], "(distill, which clients use too; feedback = teacher)"),
        ({"feedback": "none", "select": "uncertain(size=9)"}, {"sharpen": "era"}, [], "(select = uncertain(size=9))"),
        ({"rounds": 1}, {"batch_size": 8}, [], "batch_size = 8 is the student's only: clients had trained with 32."),
        ({"rounds": 1}, {"seed": 4}, [], "seed = 4 is the student's only: data and clients are those of seed 0."),
    ],
)  # fmt: skip
def test_a_replay_says_in_what_it_differs_from_a_run_with_the_same_changes(run_with, changes, without, words):
    notes = caveats(config(**run_with), config(**{**run_with, **changes}), without=without)
    assert (notes == []) if words is None else (words in notes[0])


def test_the_value_of_a_client_is_exact_only_where_it_taught_nobody():
    assert value_caveats(config(rounds=1)) == value_caveats(config(feedback="none")) == []
    assert value_caveats(config())[0].startswith("NOT exact (feedback = teacher)")


def test_a_row_that_nobody_answers_any_more_counts_as_wrong():
    truth = np.array([0, 1, 2, 0])
    nobody = np.full(3, np.nan)
    full = Teacher(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], nobody]), np.arange(4))
    less = Teacher(np.array([[0.8, 0.1, 0.1], nobody, [0.1, 0.2, 0.7], [1, 0, 0]]), np.arange(4))
    assert hit_rate(full, full, truth) == pytest.approx(2 / 3)  # rows 0 and 1 of three
    assert hit_rate(full, less, truth) == pytest.approx(2 / 3)  # rows 0 and 2; row 3 had no teacher before
    assert hit_rate(less, full, truth) == pytest.approx(1 / 3)  # of rows 0, 2 and 3 only row 0


def test_the_value_of_honest_clients_and_of_a_liar_worked_out_by_hand(tmp_path):
    path = run(tmp_path / "lies", rounds=1)
    recording = open_recording(RunDirectory(path))
    truth, rows = recording.shared.truth, len(recording.shared.transfer)
    right, wrong = one_hot(truth, 10), one_hot((truth + 1) % 10, 10)
    half = np.where(np.arange(rows)[:, None] < rows // 2, right, wrong)
    # Client 0 knows everything, client 1 the first half; client 2 lies and counts a little more than either.
    releases = {
        0: Release(right, np.full(rows, 1.0, np.float32)),
        1: Release(half, np.full(rows, 1.0, np.float32)),
        2: Release(wrong, np.full(rows, 1.5, np.float32)),
    }
    save_round(path / "ballots", Query(1, np.arange(rows), 10, recording.shared.transfer.fingerprint), releases)
    done = again(path, leave_one_out=True)
    # With all: first half 2 > 1.5 right, second half 1 < 2.5 wrong: 1/2. Without 0: 1 < 1.5 wrong everywhere: 0.
    # Without 1: 1 < 1.5: 0. Without 2: the first half right, in the second a tie of truth and lie.
    ties = (truth[rows // 2 :] < (truth[rows // 2 :] + 1) % 10).sum() / rows  # ties go to the lower class
    values = {value.client: value.teacher for value in done.values}
    assert values == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5 - (0.5 + ties)})
    assert values[2] < 0
    assert [value.client for value in done.values] == [0, 1, 2]
    assert all(value.student is None for value in done.values)
    saved = json.loads((done.path / "value.json").read_text())
    assert [row["client"] for row in saved["clients"]] == [0, 1, 2]
    assert saved["with_all"]["teacher"] == pytest.approx(0.5)
    assert saved["notes"] == []


def test_students_without_a_client_are_those_of_a_replay_without_it(single):
    done = again(single, leave_one_out=True, students=True)
    alone = again(single, without=[1])
    value = next(value for value in done.values if value.client == 1)
    with_all = open_recording(RunDirectory(single)).reports[-1].metrics["student"]
    assert value.student == pytest.approx(with_all - alone.reports[-1].metrics["student"])
    assert [value.student for value in done.values] == sorted((v.student for v in done.values), reverse=True)


def test_a_client_that_a_round_cannot_do_without_has_no_value_and_leads_the_table(tmp_path):
    path = run(tmp_path / "one", rounds=1)
    recording = open_recording(RunDirectory(path)).round(1)
    silent = {key: Release(r.p, np.zeros_like(r.w)) for key, r in recording.releases.items()}
    save_round(path / "ballots", recording.query, {**silent, 2: recording.releases[2]})
    values = again(path, leave_one_out=True).values
    assert (values[0].client, values[0].teacher) == (2, None)
    assert [value.teacher for value in values[1:]] == [0, 0]
    with pytest.raises(FedkdError, match="round 1: no ballot is left without client 2"):
        again(path, without=[2])


def test_values_need_true_labels(tmp_path):
    with pytest.raises(ConfigError, match="needs true labels"):
        again(run(tmp_path / "blind", rounds=1, evaluate=False), leave_one_out=True)


def test_the_command_replays_and_prints_what_clients_are_worth(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    done = CliRunner().invoke(cli.app, ["replay", "base", "--set", "distill_epochs=1", "--leave-one-out"])
    assert done.exit_code == 0, done.output
    assert "replay of base" in done.output
    assert "local model" in done.output
    assert "NOT exact (feedback = teacher)" in done.output
    assert list(base.parent.glob("base-replay-*/report.html"))


def test_a_damaged_ballot_file_is_one_line(tmp_path):
    path = run(tmp_path / "torn", rounds=1)
    file = path_of(path / "ballots", 1)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        again(path)


def test_values_come_with_what_one_row_is_worth_and_nothing_is_called_unchanged(base):
    notes = again(base, leave_one_out=True).notes
    assert "One row of the transfer set is 1.7 points." in notes  # of 60
    assert "With all clients: student and metrics equal those of base, bit for bit." in notes
    assert not any("Nothing was changed" in note for note in notes)
    assert "One row of the test set is 0.25 points." in again(base, students=True).notes


def test_the_header_of_a_replay_names_who_is_left_out(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    done = CliRunner().invoke(cli.app, ["replay", "base", "--without", "1"])
    assert "clients   2 of 3" in done.output and "without   1" in done.output


def test_ctrl_c_leaves_nothing_of_a_replay_and_says_so(base, monkeypatch):
    before = sorted(base.parent.iterdir())

    def stop(self, recorded):
        raise KeyboardInterrupt

    monkeypatch.setattr(Replayed, "again", stop)
    monkeypatch.chdir(base.parent)
    for given in ([], ["--name", "mine"]):
        done = CliRunner().invoke(cli.app, ["replay", "base", *given])
        assert done.exit_code == 130 and done.stderr == "interrupted; nothing kept\n"
        assert "Traceback" not in done.output and sorted(base.parent.iterdir()) == before
