"""Figures of a run in TensorBoard and MLflow: what they get, once, and while the run goes on."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from report_scene import _round, _summary, _write
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from fedkd import publish as publishing
from fedkd import status
from fedkd.errors import DataError, FedkdError
from fedkd.figures import figures
from fedkd.journal import read_run
from fedkd.publish import MLflow, TensorBoard, identity, publish, without_password
from fedkd.status import Status

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'rounds = 3\npreset = "expert"\nresume = false\noutput = ""\n'


def run_directory(path, rounds=3, state="done"):
    _write(path, [_round(r) for r in range(1, rounds + 1)], _summary() if state == "done" else None)
    (path / "config.toml").write_text(CONFIG)
    say(path, state)
    return path


def say(path, state):
    import time

    now = time.time()
    (path / "status.json").write_bytes(status._FORM.dump_json(Status(path.name, "inprocess", now, now, state=state)))


def scalars(folder):
    """Return {tag: [(step, value), ...]} and the texts of all event files in ``folder``."""
    found, texts = {}, {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    texts[value.tag] = value.tensor.string_val[0].decode()
                else:
                    found.setdefault(value.tag, []).append((event.step, round(value.tensor.float_val[0], 4)))
    return found, texts


class Recorder:
    """A sink that remembers."""

    def __init__(self, known=0):
        self.known, self.heard, self.ended = known, [], None

    def settings(self, run):
        return self.known

    def round(self, number, values):
        self.heard.append(number)

    def end(self, report, *, failed):
        self.ended = (report.name, failed)


def test_the_figures_of_a_round_are_named_as_charts_group_them(tmp_path):
    run = read_run(run_directory(tmp_path / "a"))
    told = figures(run, run.rounds[1])
    assert told["accuracy/student"] == 0.879
    assert told["bytes/up"] == 64000
    assert told["seconds/distill"] == 1.2
    assert told["seconds/round"] == pytest.approx(4.52)
    assert "privacy/epsilon" not in told  # it is infinite, and zero would be a lie


def test_tensorboard_gets_every_round_and_the_settings(tmp_path):
    path = run_directory(tmp_path / "a")
    for _ in range(2):  # the second time replaces the first
        with TensorBoard(tmp_path / "tb", "a") as sink:
            assert publish(path, [sink]) == 3
    found, texts = scalars(tmp_path / "tb" / "a")
    assert found["accuracy/student"] == [(1, 0.879), (2, 0.879), (3, 0.879)]
    assert [value for _, value in found["teacher/entropy"]] == [1.5, 0.75, 0.5]
    assert "| aggregate | `mean` |" in texts["settings"]
    assert "| privacy.guarantee | `NONE` |" in texts["settings"]


def test_event_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "tb" / "a").mkdir(parents=True)
    theirs = tmp_path / "tb" / "a" / "events.out.tfevents.1.host"
    theirs.write_bytes(b"")
    with TensorBoard(tmp_path / "tb", "a"):
        pass
    assert theirs.exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedkdError, match="cannot write .*file/a: Not a directory"):
        TensorBoard(tmp_path / "file", "a")


def test_following_publishes_rounds_as_they_come_and_ends_with_the_run(tmp_path):
    path, sink = run_directory(tmp_path / "a", rounds=1, state="asking"), Recorder()
    steps = iter([lambda: run_directory(path, 2, "distilling"), lambda: run_directory(path, 3, "done")])
    heard = []

    def pause(_):
        heard.append(list(sink.heard))
        next(steps)()

    assert publish(path, [sink], follow=True, pause=pause) == 3
    assert heard == [[1], [1, 2]]
    assert sink.heard == [1, 2, 3]
    assert sink.ended == ("report.html", False)


def test_a_run_without_a_round_is_waited_for_only_when_followed(tmp_path):
    path = run_directory(tmp_path / "a", rounds=0, state="asking")
    with pytest.raises(DataError, match="no finished round"):
        publish(path, [Recorder()])
    sink = Recorder()
    assert publish(path, [sink], follow=True, pause=lambda _: run_directory(path, 1, "failed")) == 1
    assert sink.ended == ("report.html", True)


def test_a_run_that_was_killed_ends_what_follows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "STALE", -1.0)
    sink = Recorder()
    publish(run_directory(tmp_path / "a", 2, "asking"), [sink], follow=True)
    assert sink.ended == ("report.html", True)


def test_what_a_sink_has_already_is_not_sent_again(tmp_path):
    sink = Recorder(known=2)
    publish(run_directory(tmp_path / "a"), [sink])
    assert sink.heard == [3]


def test_a_run_that_was_begun_anew_with_other_settings_is_another(tmp_path):
    path = run_directory(tmp_path / "a")
    first = identity(read_run(path))
    assert first == identity(read_run(path))
    (path / "config.toml").write_text(CONFIG + "seed = 1\n")
    assert identity(read_run(path)) != first


class FakeClient:
    """The calls of MLflow's client that we make, remembered."""

    runs: dict = {}

    def __init__(self, tracking_uri):
        if "nowhere" in tracking_uri:
            raise FakeError("no such\nserver")

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="1") if self.runs else None

    def create_experiment(self, name):
        return "1"

    def search_runs(self, experiments, filter_string, max_results):
        whose = filter_string.split("'")[1]
        return [run for run in self.runs.values() if run.data.tags["fedkd.run"] == whose]

    def create_run(self, experiment, tags):
        data = types.SimpleNamespace(tags=dict(tags), metrics=[], params={}, artifacts=[])
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"r{len(self.runs)}", status=""), data=data)
        self.runs[run.info.run_id] = run
        return run

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        self.runs[run_id].data.metrics += metrics
        self.runs[run_id].data.params |= dict(params)

    def set_tag(self, run_id, key, value):
        self.runs[run_id].data.tags[key] = str(value)

    def log_artifact(self, run_id, path):
        self.runs[run_id].data.artifacts.append(Path(path).name)

    def set_terminated(self, run_id, how):
        self.runs[run_id].info.status = how


class FakeError(Exception):
    pass


@pytest.fixture
def fake_mlflow(monkeypatch):
    FakeClient.runs = {}
    modules = {
        "mlflow": {},
        "mlflow.entities": {"Metric": lambda *given: given, "Param": lambda key, value: (key, value)},
        "mlflow.exceptions": {"MlflowException": FakeError},
        "mlflow.tracking": {"MlflowClient": FakeClient},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    return FakeClient


def test_mlflow_gets_parameters_every_round_and_the_report_and_is_told_once(tmp_path, fake_mlflow):
    path = run_directory(tmp_path / "a", rounds=2)
    for rounds in (2, 3, 3):
        run_directory(path, rounds)
        with MLflow("http://localhost:1", "a") as sink:
            publish(path, [sink])
    (run,) = fake_mlflow.runs.values()
    assert [step for tag, _, _, step in run.data.metrics if tag == "accuracy/student"] == [1, 2, 3]
    assert run.data.params["aggregate"] == "mean"
    assert run.data.params["privacy.guarantee"] == "NONE"
    assert run.data.tags["mlflow.runName"] == "a"
    assert set(run.data.artifacts) == {"report.html"}
    assert run.info.status == "FINISHED"
    assert publishing.os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_server_that_is_not_there_is_one_line_without_the_password(fake_mlflow):
    with pytest.raises(FedkdError, match="^MLflow at http://nowhere:1 does not take this: no such server$"):
        MLflow("http://me:secret@nowhere:1", "a")
    assert without_password("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_a_real_mlflow_shows_what_was_published(tmp_path):
    path = run_directory(tmp_path / "a", rounds=2)
    code = f"""
import sys
from pathlib import Path
from fedkd.publish import MLflow, publish
from mlflow.tracking import MlflowClient
path = Path({str(path)!r})
for _ in range(2):
    with MLflow("sqlite:///m.db", "a") as sink:
        publish(path, [sink])
client = MlflowClient("sqlite:///m.db")
(run,) = client.search_runs(["1"])
print(run.data.params["aggregate"], run.info.status, [f.path for f in client.list_artifacts(run.info.run_id)],
      [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "bytes/up")])
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "mean FINISHED ['report.html'] [(1, 64000.0), (2, 64000.0)]"


def command(tmp_path, *words, without=None):
    code = f"import sys; sys.modules[{without!r}] = None; sys.argv = ['fedkd', 'publish', *{words!r}]\n"
    code += "from fedkd.commands.main import main; main()"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_the_command_says_what_it_did_and_what_it_lacks(tmp_path):
    run_directory(tmp_path / "runs" / "a")
    done = command(tmp_path, "a", "--tensorboard", "tb")
    assert (done.returncode, done.stdout) == (0, "published 3 rounds of a to tb\n"), done.stderr
    assert scalars(tmp_path / "tb" / "a")[0]["accuracy/student"]
    done = command(tmp_path, "a")
    assert (done.returncode, done.stderr) == (2, "error where to? Give --tensorboard DIR or --mlflow URI\n")
    done = command(tmp_path, "a", "--mlflow", "x", without="mlflow")
    assert done.returncode == 2
    assert done.stderr == (
        "error --mlflow needs mlflow-skinny, which is not installed. Run: pip install 'fedkd[monitor]'\n"
    )


def test_the_configuration_of_a_running_run_is_published_too(tmp_path):
    path = run_directory(tmp_path / "a", 1, "asking")
    assert publishing.parameters(read_run(path)) == {"rounds": "3", "preset": "expert", "resume": "false"}
    assert json.loads((path / "metrics.jsonl").read_text())["round"] == 1
