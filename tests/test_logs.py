"""Structured logs: one object a line, and nothing in any of them that a client holds."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedkd import logs
from fedkd.config import Config
from fedkd.errors import ConfigError, DataError, QuorumError
from fedkd.flower.grid import LocalGrid
from fedkd.flower.strategy import FederatedDistillation
from fedkd.metrics_page import page
from fedkd.report import write_report

ROOT = Path(__file__).resolve().parent.parent
MARKER = "zebra7319"
LEARNER = """
import numpy as np
class Learner:
    def fit(self, x, y):
        if (x == 7319.25).any():
            try:
                raise KeyError(f"zebra7319 in {x.max()}")
            except KeyError as error:
                raise ValueError(f"what is zebra7319 doing in {y}") from error
        self.classes = 10
    def predict(self, x):
        return np.full((len(x), 10), 0.1, np.float32)
"""


@pytest.fixture
def stream(capsys, monkeypatch):
    """Return a function that reads standard error; take the handler off afterwards."""
    monkeypatch.setenv("FEDKD_LOG", "")  # so that what configure() sets is taken back
    before = logs.log.level, logs.log.propagate
    yield lambda: capsys.readouterr().err
    logs.log.handlers = [one for one in logs.log.handlers if not isinstance(one, logs._OurHandler)]
    logs.log.setLevel(before[0])
    logs.log.propagate = before[1]


def objects(stream):
    return [json.loads(line) for line in stream().splitlines()]


def failed(error, **keys):
    try:
        raise error
    except type(error) as caught:
        logs.log.error("client %s failed", 3, exc_info=caught, **keys)


def test_an_event_is_one_json_object_with_its_facts(stream, monkeypatch):
    logs.configure("json")
    logs.tell("answer", run="a", round=2, client="3", seconds=0.5, error=None)
    (line,) = objects(stream)
    assert line.pop("time").endswith("Z")
    expected = {"level": "info", "event": "answer", "run": "a", "round": 2, "client": "3", "seconds": 0.5}
    assert line == expected


def test_an_event_as_text_is_one_line_that_says_the_same(stream, monkeypatch):
    monkeypatch.setenv("FEDKD_LOG", "text")
    logs.configure()
    logs.tell("answer", run="a b", client="3\nx\x1b[31m", seconds=0.5)
    assert stream().split(" ", 1)[1] == 'INFO answer run="a b" client="3 x [31m" seconds=0.5\n'


def test_without_a_format_nothing_is_logged_and_nothing_is_changed(stream):
    handlers = list(logs.log.handlers)
    logs.configure()
    logs.tell("answer", run="a")
    with pytest.raises(ValueError), logs.telling("a"):
        raise ValueError("the command line says this")
    assert stream() == ""
    assert logs.log.handlers == handlers


def test_an_unknown_format_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("FEDKD_LOG", "jsn")
    with pytest.raises(ConfigError, match="FEDKD_LOG must be json or text, got 'jsn'. Did you mean 'json'"):
        logs.configure()


def test_configuring_twice_writes_once(stream):
    logs.configure("text")
    logs.configure("json")
    logs.tell("done", run="a")
    assert len(objects(stream)) == 1


@pytest.mark.parametrize("form", ["json", "text", ""])
def test_what_a_foreign_exception_says_is_in_no_log_but_where_it_was_raised_is(stream, form):
    handler = logging.StreamHandler()  # as Flower or a user might add one
    logs.log.addHandler(handler)
    try:
        logs.configure(form)
        failed(ValueError(f"{MARKER} in the data"))
    finally:
        logs.log.removeHandler(handler)
    text = stream()
    assert MARKER not in text
    assert "ValueError" in text
    assert "test_logs.py" in text
    assert "client 3 failed" in text


def test_loggers_below_ours_are_redacted_too(stream):
    logs.configure("text")
    try:
        raise ValueError(MARKER)
    except ValueError:
        logging.getLogger("fedkd.serving").exception("the warden failed")
    assert "ValueError (text withheld" in (text := stream())
    assert MARKER not in text


def test_of_a_chain_of_exceptions_each_is_redacted():
    try:
        try:
            raise KeyError(f"{MARKER} first")
        except KeyError as error:
            raise ValueError(f"{MARKER} then") from error
    except ValueError as error:
        text = logs.redacted(error)
    assert MARKER not in text
    assert text.index("KeyError (text withheld") < text.index("ValueError (text withheld")


def test_a_simulation_keeps_its_text_where_tracebacks_are_read(stream):
    logs.configure("text")
    failed(ValueError("no such width"), extra={"simulated": True})
    assert "ValueError: no such width" in stream()


def test_in_json_what_data_errors_quote_is_withheld_and_what_settings_are_wrong_is_not(stream):
    logs.configure("json")
    logs.log.warning("client %s: %s", 1, DataError(f"has the class {MARKER!r}"))
    logs.log.warning("client %s: %s", 2, QuorumError("2 needed"))
    first, second = objects(stream)
    assert first["message"] == "client 1: DataError"
    assert second["message"] == "client 2: 2 needed"


def test_the_end_of_a_run_is_an_event(stream):
    logs.configure("json")
    with logs.telling("a"):
        pass
    with pytest.raises(ValueError), logs.telling("b"):
        raise ValueError(MARKER)
    done, failed_ = objects(stream)
    assert (done["event"], failed_["event"], failed_["level"], failed_["reason"]) == (
        *("done", "failed", "error"),
        "ValueError",
    )


def test_the_option_reaches_the_programs_that_a_run_starts(tmp_path):
    command = [sys.executable, "-m", "fedkd", "--log-format", "json", "run", "--name", "a"]
    for one in ("clients=2", "rounds=1", "learner=logistic", "student=none", "pooled=false", "expertise=uniform"):
        command += ["--set", one]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "answer"] == [
        *("round", "asked", "enough", "aggregate", "distill", "report", "summary", "done"),
    ]
    assert {line["run"] for line in lines} == {"a"}
    assert sorted(line["client"] for line in lines if line["event"] == "answer") == ["0", "1"]


@pytest.mark.parametrize("form", ["json", ""])
def test_what_clients_hold_is_in_no_log_status_or_metrics_of_the_run(tmp_path, monkeypatch, stream, form):
    """Client 0's learner raises with its data, client 1 has a label of that name, the others are well."""
    (tmp_path / "marked_learner.py").write_text(LEARNER)
    monkeypatch.syspath_prepend(tmp_path)
    x = np.linspace(0, 1, 20 * 64, dtype=np.float32).reshape(20, 1, 8, 8)
    files = []
    for k in range(4):
        mine = x.copy()
        if k == 0:
            mine[3] = 7319.25
        y = np.arange(20) % 10 if k != 1 else np.full(20, 7319)
        files.append(tmp_path / f"client{k}.npz")
        np.savez(files[-1], x=mine, y=y)
    monkeypatch.setenv("FEDKD_LOG", form)
    logs.configure()
    output = tmp_path / "run"
    config = Config(
        clients=4, rounds=1, learner="marked_learner:Learner", student="none", expertise="uniform", evidence="none",
        pooled=False, quorum=0.5, output=str(output),
    )  # fmt: skip

    def node_config(k):
        return {"partition-id": k, "data": f"npz:{files[k]}", "state-dir": str(tmp_path / "s"), "allow-code": True}

    log = tmp_path / "clients.log"
    run_config = config.to_run_config()
    with LocalGrid(nodes=4, run_config=run_config, node_config=node_config, workers=1, preload=(), log=log) as grid:
        FederatedDistillation(config).start(grid=grid)
    write_report(output)
    said = log.read_text()
    assert "ValueError" in said  # it was logged, but for what it says
    assert "marked_learner.py" in said
    if form:  # as text, a device tells its owner which label it is
        assert "DataError" in said
    else:
        said = "".join(line for line in said.splitlines() if "has the label" not in line)
    texts = {path.name: path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".jsonl", ".csv",
                                                                                         ".html", ".toml")}  # fmt: skip
    assert {"status.json", "metrics.jsonl", "report.html"} <= texts.keys()
    rows = json.loads(texts["status.json"])["clients"]
    assert [rows[str(k)]["status"] for k in range(4)] == ["refused", "refused", "answered", "answered"]
    texts |= {"clients.log": said, "stderr": stream(), "metrics page": page(output).decode()}
    for name, text in texts.items():
        assert MARKER not in text, name
        assert "7319" not in text, name
