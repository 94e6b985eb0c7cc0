"""One pair of apps, three engines: equal seeds give equal metrics, to the last bit."""

import dataclasses
import json
from pathlib import Path

import pytest
from flower_processes import deployment

from fedkd.config import Config
from fedkd.engine import run_in_process
from fedkd.flower.grid import LocalGrid
from fedkd.flower.launch import run_with_flower
from fedkd.flower.strategy import FederatedDistillation

ROOT = Path(__file__).resolve().parent.parent
# A network, a forest and a linear model; noise in quantize, choice in select, and feedback: all streams are used.
CONFIG = Config(
    clients=3, rounds=2, learner="cnn(width=4), forest(trees=10), logistic", student="mlp", select="uniform(size=200)",
    release="quantize(bits=4)", broadcast="quantize(bits=6)", local_epochs=1, feedback_epochs=1, distill_epochs=5,
    pooled=False,
)  # fmt: skip


def what_was_computed(reports):
    """Return everything about rounds but time."""
    return [{key: row[key] for key in ("round", "metrics", "clients")} for row in reports]


def journal(path):
    return what_was_computed(json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """The run that all others must equal: in process, one worker."""
    output = tmp_path_factory.mktemp("engines") / "one"
    result = run_in_process(CONFIG.model_copy(update={"output": str(output)}), workers=1)
    assert all(row["status"] == "answered" for report in result.reports for row in report.clients.values())
    assert what_was_computed(map(dataclasses.asdict, result.reports)) == journal(output)
    return output


def test_two_workers_compute_what_one_computes(one_worker, tmp_path):
    run_in_process(CONFIG.model_copy(update={"output": str(tmp_path / "two")}), workers=2)
    assert journal(tmp_path / "two") == journal(one_worker)
    student = "student.safetensors"
    assert (tmp_path / "two" / student).read_bytes() == (one_worker / student).read_bytes()


def test_a_run_that_writes_nothing_computes_the_same(one_worker):
    result = run_in_process(CONFIG, workers=2)
    assert what_was_computed(map(dataclasses.asdict, result.reports)) == journal(one_worker)


def test_another_seed_computes_something_else(one_worker):
    reports = run_in_process(CONFIG.model_copy(update={"seed": 1, "rounds": 1}), workers=2).reports
    assert reports[0].metrics != journal(one_worker)[0]["metrics"]


def test_a_round_survives_clients_that_raise_die_hang_and_babble(tmp_path):
    config = CONFIG.model_copy(
        update={"clients": 6, "rounds": 2, "quorum": 0.3, "deadline": 60.0, "grace": 4.0, "late": False}
    )

    def node_config(k):
        return {"state-dir": str(tmp_path)}

    with LocalGrid(
        "failing_clients:client", nodes=6, run_config=config.to_run_config(), node_config=node_config, workers=2
    ) as grid:
        reports = FederatedDistillation(config).start(grid=grid).reports
    rows = reports[0].clients
    assert [rows[k]["status"] for k in "012345"] == ["failed", "failed", "silent", "failed", "answered", "answered"]
    assert rows["0"]["error"] == "Flower error 2: RuntimeError"
    assert "Flower error 8" in rows["1"]["error"]
    assert "release frame" in rows["3"]["error"]
    assert reports[1].metrics["answered"] == 2


DOWN = ("bytes_down", "bytes_multicast")


def test_a_run_with_deltas_down_computes_what_one_without_does():
    keys = {"rounds": 3, "select": "cache_miss(size=200, duration=1)", "expertise": "uniform", "late": False}
    full, lean = (
        run_in_process(CONFIG.model_copy(update={**keys, "broadcast": way}), workers=2).reports
        for way in ("quantize(bits=6)", "quantize(bits=6) | delta")
    )
    for a, b in zip(full, lean, strict=True):
        assert {k: v for k, v in a.metrics.items() if k not in DOWN} == {
            k: v for k, v in b.metrics.items() if k not in DOWN
        }
    assert lean[2].metrics["bytes_down"] < full[2].metrics["bytes_down"] - 500


@pytest.mark.slow
def test_flowers_simulation_computes_what_the_in_process_engine_computes(one_worker, tmp_path):
    settings = CONFIG.model_copy(update={"output": str(tmp_path / "flower")}).to_run_config()
    lines: list[str] = []
    assert run_with_flower(ROOT, settings, nodes=CONFIG.clients, echo=lines.append) == 0, "\n".join(lines)
    assert journal(tmp_path / "flower") == journal(one_worker)


@pytest.mark.slow
def test_a_superlink_with_supernodes_computes_what_the_in_process_engine_computes(one_worker, tmp_path):
    settings = CONFIG.model_copy(update={"output": str(tmp_path / "deployed")}).to_run_config()
    lines: list[str] = []
    folder, state = tmp_path / "link", str(tmp_path / "state")
    folder.mkdir()
    with deployment(folder, nodes=CONFIG.clients, app_dir=ROOT, node_config=lambda k: {"state-dir": state}) as center:
        assert center.link.follow(center.link.submit(ROOT, settings), lines.append) == 0, "\n".join(lines)
    assert journal(tmp_path / "deployed") == journal(one_worker)
