"""None"""

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
from report_scene import _page, _panel, _Reader, _round, _summary, _write

from fedkd.journal import Run, read_run
from fedkd.records import RoundReport
from fedkd.report import render, write_report

PANELS = [
    "accuracy", "bytes", "clients", "presence", "latency", "seconds", "reliability", "confusion", "loss", "entropy",
    "released", "provenance",
]  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def run(tmp_path):
    return _write(tmp_path / "digits-001", [_round(r) for r in (1, 2, 3)], _summary())


def test_who_stands_apart_has_a_panel_where_it_is_known(tmp_path):
    rounds, summary = [_round(1), _round(2)], _summary()
    for r in rounds:
        for key, row in r["clients"].items():
            row["outlier"] = 0.9 if key == "3" else 0.1 + 0.01 * int(key)
            row["trust"] = 0.25 if key == "3" else 1.0
    for key, row in summary["clients"].items():
        row["dishonest"] = key in ("3", "0")
    html = render(Run(tmp_path, [RoundReport(**r) for r in rounds], summary))
    assert "Client 3 is farthest from it at last: 0.900" in html
    assert "Of the 2 that attack, 1 are among the 2 farthest." in html
    bare = render(Run(tmp_path, [RoundReport(**_round(1))], _summary()))
    assert "Who stands apart" not in bare


def test_every_panel_is_there_with_a_picture_and_its_numbers(run):
    page = _page(run)
    for name in PANELS:
        panel = _panel(page, name)
        if name not in ("released", "provenance"):
            assert '<svg viewBox="0 0 400' in panel, name
            assert 'aria-label="' in panel
        assert "<table>" in panel, name
    assert _Reader(page).open == []


def test_the_verdict_says_what_the_student_is_worth(run):
    page = _page(run)
    assert "The student answers 87.9% of the test set correctly," in page
    assert "33.3 points above the average client&#39;s own model and 9.8 points above the best one." in page
    assert "It is 33.3 points above the average client alone, as it was in round 1." in page
    assert "It is 9.8 points below a model trained on everyone&#39;s data in one place." in page
    assert "Each client sent 8 kB a round; FedAvg is impossible here (4 different architectures)." in page
    assert "10 classes · 1,037 private samples" in page.replace("</b>", "")


def test_a_student_below_the_best_client_is_not_praised(run):
    summary = _summary()
    summary["scoreboard"] |= {"student": 0.7}
    page = _page(_write(run, [_round(1)], summary))
    assert "8.1 points below the best one." in page
    assert "the best client is better off with its own model" in page
    assert '<strong class="bad">' in page
    summary["scoreboard"] |= {"student": 0.4}
    assert "Distillation made things worse" in _page(_write(run, [_round(1)], summary))


def test_fedavg_is_compared_with_what_was_sent_and_marked_where_one_round_would_be(run):
    summary = _summary()
    summary["scoreboard"]["fedavg"] = {"possible": True, "why": "float32", "bytes_per_client_round": 87_360}
    page = _page(_write(run, [_round(1)], summary))
    assert "FedAvg would send 87.4 kB, 11 times as much." in page
    assert "one FedAvg round: 1.4 MB" in _panel(page, "bytes")  # 8 clients, down and up
    assert "The whole run moved 71.2 kB" in _panel(page, "bytes")


def test_no_privacy_is_said_loudly(run):
    page = _page(run)
    assert re.search(r'class="banner" id="privacy".*?<strong>privacy: NONE</strong>', page, re.S)


@pytest.mark.parametrize(
    "claim",
    [
        {},
        {"guarantee": "DP", "epsilon": "infinite"},
        {"guarantee": "DP", "epsilon": 1.0},
        {"guarantee": "DP", "epsilon": 1.0, "delta": 1e-5, "unit": "example"},
        {"guarantee": "DP", "epsilon": -1.0, "delta": 1e-5, "unit": "example", "neighbors": "add or remove"},
        {"guarantee": "NO PRIVACY (seeded)", "epsilon": 1.0, "delta": 1e-5, "unit": "example", "neighbors": "zero-out"},
    ],
)
def test_privacy_that_is_not_stated_in_full_is_an_alarm(run, claim):
    page = _page(_write(run, [_round(1)], _summary() | {"privacy": claim}))
    assert 'class="banner" id="privacy"' in page
    assert re.search("privacy: NO", page)


def test_a_guarantee_stated_in_full_is_printed_with_all_its_parts(run):
    claim = {"guarantee": "DP-SGD", "epsilon": 3.0, "delta": 1e-5, "unit": "one example", "neighbors": "add or remove"}
    page = _page(_write(run, [_round(1)], _summary() | {"privacy": claim}))
    assert "privacy: DP-SGD, epsilon 3" in page
    assert "delta 1e-05, unit: one example, neighbors: add or remove" in page
    assert 'class="banner calm"' in page


def test_an_unfinished_run_is_reported_from_its_rounds_alone(tmp_path):
    page = _page(_write(tmp_path / "demo", [_round(1), _round(2)]))
    assert ">unfinished<" in page
    assert "what follows covers 2 rounds" in page
    assert "The student answers 87.9%" in page
    assert "privacy: NONE" in page
    for name in PANELS:
        _panel(page, name)


def test_an_unfinished_run_shows_the_configuration_it_was_started_with(tmp_path):
    path = _write(tmp_path / "demo", [_round(1)])
    (path / "config.toml").write_text('seed = 7  # --set\naggregate = "era(temperature=0.1)"  # preset ds_fl\n')
    assert "# preset ds_fl" in _page(path)
    assert read_run(path).config["seed"] == 7


def test_statuses_are_counted_for_each_client(run):
    panel = _panel(_page(run), "presence")
    assert "Who answered, and when? 8 of 24 answers came in time." in panel
    assert '<th scope="row">1</th><td>3</td><td>0</td><td>1</td><td>0</td><td>1</td><td>1</td>' in panel
    assert "soft labels must be finite" in panel


def test_numbers_behind_the_pictures_are_formatted(run):
    page = _page(run)
    assert '<th scope="row">2</th><td>87.9%</td><td>88.3%</td><td>54.6%</td><td>78.1%</td><td>31.0%</td>' in page
    assert "<td>142 kB</td><td>64 kB</td><td>7.2 kB</td>" in _panel(page, "bytes")
    assert "student, ECE 0.032" in _panel(page, "reliability")
    assert "1.50 in round 1, 0.50 in round 3" in _panel(page, "entropy")
    assert "13.6 s in all, 66.4% of it" in _panel(page, "seconds")
    assert "<td>+20.0</td>" in _panel(page, "clients")
    assert "fedkd run --set seed=7" in _panel(page, "provenance")


def test_bytes_of_a_round_are_the_sum_over_clients_where_no_total_is_known(tmp_path):
    line = _round(1)
    line["metrics"] |= {"bytes_up": None, "bytes_down": None}
    assert read_run(_write(tmp_path / "sum", [line])).traffic() == [8 * 8900]


def test_reading_and_reporting_import_no_heavy_library(run):
    code = (
        "import sys; from pathlib import Path; from fedkd.report import write_report; write_report(Path(sys.argv[1]));"
        "print([m for m in ('torch', 'flwr', 'sklearn', 'torchvision', 'opacus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _pixels(png):
    """Return width, height and the unfiltered rows of a PNG, with the standard library alone."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        chunk = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", chunk[:8])
        data += chunk if kind == b"IDAT" else b""
        at += 12 + length
    return width, height, zlib.decompress(data)


def _browse(folder, page, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", *options, page.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True, env=environment).stdout


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary found")
def test_a_browser_shows_the_page_on_a_desktop_and_on_a_phone(run, tmp_path):
    page = write_report(run)
    dom = _browse(tmp_path, page, "--dump-dom")
    assert "The student answers 87.9% of the test set correctly," in dom
    assert "privacy: NONE" in dom
    # A window cannot be as narrow as a phone, a frame can; the script of the frame measures the page, which has none.
    frame = tmp_path / "phone.html"
    frame.write_text(
        f"<body style='margin:0'><iframe src='{page.as_uri()}' style='border:0;width:360px;height:2000px' "
        "onload=\"const d=this.contentDocument.documentElement;document.title=d.scrollWidth+'/'+d.clientWidth\">"
        "</iframe>"
    )
    measured = re.search(r"<title>(\d+)/(\d+)</title>", _browse(tmp_path, frame, "--dump-dom"))
    assert measured and measured.group(1) == measured.group(2) == "360"  # no scrolling sideways
    for target, window in ((page, "1200,2000"), (frame, "500,2000")):
        picture = tmp_path / "picture.png"
        _browse(tmp_path, target, f"--screenshot={picture}", f"--window-size={window}")
        width, height, rows = _pixels(picture.read_bytes())
        assert (width, height) == tuple(map(int, window.split(",")))
        stride = len(rows) // height
        lines = [rows[i * stride + 1 : (i + 1) * stride] for i in range(height)]
        assert len(set(lines)) > height / 5  # rows are filtered: all rows of a blank picture are alike
