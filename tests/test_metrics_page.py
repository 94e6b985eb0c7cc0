"""The figures of a run as Prometheus reads them, parsed by its own library."""

import math
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from report_scene import _round, _summary, _write

from fedkd import metrics_page, status
from fedkd.config import resolve
from fedkd.errors import FedkdError
from fedkd.status import Client, Status

ROOT = Path(__file__).resolve().parent.parent


def run_directory(path, rounds=2, **keys):
    _write(path, [_round(r) for r in range(1, rounds + 1)], _summary() if keys.get("state") == "done" else None)
    (path / "config.toml").write_text(keys.pop("config", ""))
    clients = {"0": Client("answered", None, 2000, 10, 0.5, 2, 2, 5.0), "1": Client("silent", "x", 0, 10)}
    given = {"state": "asking", "round": 3, "rounds": 5, "clients": clients, **keys}
    (path / "status.json").write_bytes(status._FORM.dump_json(Status(path.name, "inprocess", 1000.0, 1010.0, **given)))
    return path


def samples(text):
    """Return {name: {labels: value}} of an exposition; that it parses is part of the test."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_page_says_what_status_and_journal_say(tmp_path):
    found = samples(metrics_page.page(run_directory(tmp_path / "a", deadline=1030.0), now=lambda: 1020.0))
    assert found["fedkd_run_info"] == {"engine=inprocess,run=a": 1}
    assert found["fedkd_round"] == {"": 3}
    assert found["fedkd_rounds"] == {"": 5}
    assert found["fedkd_state"]["state=asking"] == 1
    assert sum(found["fedkd_state"].values()) == 1
    assert found["fedkd_clients"]["status=answered"] == found["fedkd_clients"]["status=silent"] == 1
    assert found["fedkd_clients"]["status=late"] == 0  # a series that comes and goes cannot be alerted on
    assert found["fedkd_bytes_total"] == {"direction=up": 2000, "direction=down": 20}
    assert found["fedkd_deadline_left_seconds"] == {"": 10}
    assert found["fedkd_stale"] == {"": 0}
    assert found["fedkd_accuracy"]["model=student"] == 0.879
    assert found["fedkd_round_seconds"]["stage=distill"] == 1.2
    assert found["fedkd_answer_seconds_count"] == {"": 16}
    assert found["fedkd_answer_seconds_sum"][""] == pytest.approx(2 * sum(0.1 * (k + 1) for k in range(8)))
    buckets = found["fedkd_answer_seconds_bucket"]
    assert (buckets["le=0.1"], buckets["le=0.3"], buckets["le=1.0"], buckets["le=+Inf"]) == (2, 4, 16, 16)


def test_a_run_that_was_killed_is_stale(tmp_path):
    path = run_directory(tmp_path / "a")
    assert samples(metrics_page.page(path, now=lambda: 1010.0 + status.STALE + 1))["fedkd_stale"] == {"": 1}


def test_without_a_guarantee_epsilon_is_infinite(tmp_path):
    found = samples(metrics_page.page(run_directory(tmp_path / "a")))
    assert list(found["fedkd_epsilon"].values()) == [math.inf]


def test_epsilon_is_that_of_the_rounds_so_far(tmp_path):
    config = resolve(preset="private_clients", sets=["rounds=4"], environ={})
    spent = []
    for rounds in (1, 4):
        path = run_directory(tmp_path / f"r{rounds}", rounds=rounds, config=config.to_toml())
        ((labels, epsilon),) = samples(metrics_page.page(path))["fedkd_epsilon"].items()
        assert labels == f"delta={config.config.delta:g},neighbors=zero_out,unit=client"
        spent.append(epsilon)
    assert 0 < spent[0] < spent[1] <= config.config.epsilon


def test_a_run_that_has_no_round_yet_has_a_page_and_one_that_is_not_there_says_so(tmp_path):
    path = run_directory(tmp_path / "a")
    (path / "metrics.jsonl").unlink()
    found = samples(metrics_page.page(path))
    assert found["fedkd_round"] == {"": 3}
    assert "fedkd_accuracy" not in found
    assert samples(metrics_page.page(tmp_path / "nothing")) == {"fedkd_status_known": {"": 0}}


def test_counts_of_a_gate_are_looked_at_anew(tmp_path):
    counts = {"requests": 1}
    path = run_directory(tmp_path / "a")
    for gate in (counts, lambda: counts):
        counts["requests"] += 1
        found = samples(metrics_page.page(path, gate=gate))
        assert found["fedkd_gate_total"] == {"event=requests": counts["requests"]}


def test_it_is_served_on_loopback_only_and_read_anew_at_each_scrape(tmp_path):
    path = run_directory(tmp_path / "a")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with metrics_page.listen(path, 0) as port:
        for round_ in (3, 4):
            run_directory(path, round=round_)
            with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                assert samples(answer.read())["fedkd_round"] == {"": round_}
        with (
            pytest.raises(FedkdError, match=f"cannot serve metrics on 127.0.0.1:{port}"),
            metrics_page.listen(path, port),
        ):
            pass  # the port is taken
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening


def test_the_command_serves_it_until_it_is_stopped(tmp_path):
    run_directory(tmp_path / "runs" / "a")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkd", "status", "a", "--serve", "0"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        line = process.stderr.readline()
        assert line.startswith("metrics of a on http://127.0.0.1:"), line
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(line.split()[4].rstrip(";"), timeout=10) as answer:
            assert samples(answer.read())["fedkd_round"] == {"": 3}
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_missing_library_is_named_with_the_line_that_installs_it(tmp_path):
    run_directory(tmp_path / "runs" / "a", state="done")
    code = (
        "import sys; sys.modules['prometheus_client'] = None; sys.argv = ['fedkd', 'status', 'a', '--serve', '0']\n"
        "from fedkd.commands.main import main; main()"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error a page of metrics needs prometheus_client, which is not installed. Run: pip install 'fedkd[monitor]'\n"
    )
