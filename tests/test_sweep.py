"""Sweeps: what a file asks for, what is refused before anything starts, and what a failure or an interrupt costs."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedkd import sweep
from fedkd.errors import ConfigError
from fedkd.journal import read_run
from fedkd.report import table
from fedkd.report.table import Findings, Finished, Variant
from fedkd.sweep import Board, Ending, check, finished_run, read_sweep, run_jobs, write_findings

ROOT = Path(__file__).resolve().parent.parent
LIGHT = """
[base]
learner = "constant"
student = "constant"
transfer = "split(size=50)"
clients = 2
rounds = 2
pooled = false
"""


def written(folder, text):
    file = folder / "file.toml"
    file.write_text(text)
    return file


def read(folder, text, **options):
    return read_sweep(written(folder, text), root=folder / "runs", **options)


def fedkd(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "fedkd", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


# What a file asks for.


def test_the_product_of_the_grid_meets_every_case_and_every_seed(tmp_path):
    asked = read(
        tmp_path,
        """
        seeds = 2
        base = {rounds = 1}
        [grid]
        partition = ["iid", "dirichlet(alpha=0.1)"]
        local-epochs = [1, 2, 3]
        [[cases]]
        name = "votes"
        preset = "tally"
        [[cases]]
        release = "argmax"
        """,
    )
    assert len(asked.variants) == 2 * 3 * 2
    assert len({job.path for job in asked.jobs}) == len(asked.jobs) == 24
    assert asked.variants["votes, partition=iid, local_epochs=2"] == {
        "preset": "tally", "partition": "iid", "local_epochs": 2
    }  # fmt: skip
    job = asked.of("votes, partition=iid, local_epochs=2")[1]
    assert (job.config.seed, job.config.rounds, job.config.aggregate, job.config.release) == (1, 1, "vote", "argmax")
    assert job.origins["aggregate"] == "preset tally" and job.origins["partition"].endswith("file.toml grid")
    assert asked.of("release=argmax, partition=iid, local_epochs=1")[0].config.preset == "expert"


def test_base_overrides_the_preset_and_a_case_overrides_base(tmp_path):
    asked = read(tmp_path, 'base = {preset = "tally", rounds = 7, sharpen = "none"}\n[[cases]]\nname="x"\nrounds = 9')
    (job,) = asked.jobs
    assert (job.config.rounds, job.config.sharpen, job.config.aggregate) == (9, "none", "vote")


def test_a_grid_of_one_key_names_its_variants_by_the_value_alone(tmp_path):
    asked = read(tmp_path, 'seeds = [3]\n[grid]\npreset = ["expert", "ds_fl"]')
    assert list(asked.variants) == ["expert", "ds_fl"]
    assert [job.path.name for job in asked.jobs] == ["expert-seed-3", "ds_fl-seed-3"]


def test_an_empty_file_is_one_run_of_the_default(tmp_path):
    (job,) = read(tmp_path, "").jobs
    assert (job.variant, job.config.seed) == ("base", 0)


def test_the_example_of_the_guide_is_what_the_guide_says(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), flags=re.S)
    asked = read(tmp_path, example)
    assert len(asked.variants) == 4 and len(asked.jobs) == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = 3", r"unknown key 'seed'. Settings of all runs go below \[base\]"),
        ("gird = {}", "unknown key 'gird'. Did you mean 'grid'?"),
        ("[base]\nlerner = 'cnn'", r"unknown key 'lerner' \(.*file.toml base\). Did you mean 'learner'\?"),
        ("[base]\nseed = 3", "seed cannot be set in a sweep: give 'seeds'"),
        ("[grid]\noutput = ['a']", "output cannot be set in a sweep"),
        ("[grid]\nrounds = 3", "grid: rounds must be a list of values, got 3"),
        ("[grid]\nrounds = []", "grid: rounds must be a list of values"),
        ("[grid]\nrounds = [1, 1]", "grid: rounds has a value twice"),
        ("[base]\nrounds = 1\n[grid]\nrounds = [2]", "rounds is in grid and in base"),
        ("[[cases]]\nrounds = 1\n[grid]\nrounds = [2]", "rounds is in grid and in cases"),
        ("[[cases]]\nname = 'a'\n[[cases]]\nname = 'a'\nrounds = 1", "two combinations are called 'a'"),
        ("[grid]\npreset = ['expert', 'ds_lf']", r"unknown preset 'ds_lf'. Did you mean 'ds_fl'\?.* \(in ds_lf\)"),
        ("[grid]\npreset = [3]", "unknown preset '3'"),
        ("seeds = 0", "seeds must be a number of seeds from 1"),
        ("seeds = [1, 1]", "seeds has one twice"),
        ("seeds = true", "seeds must be a number"),
        ("seeds = 20000", "20,000 runs are more than a sweep may have"),
        ("cases = 3", "cases must be tables"),
        ("base = 3", "base must be a table"),
        ("seeds = ", "not TOML"),
    ],
)
def test_whatever_is_wrong_is_said_in_one_line(text, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_all_combinations_are_checked_and_a_problem_of_many_is_said_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, '[grid]\nrelease = ["agmax", "float16"]\naggregate = ["mean", "medain"]')
    assert str(caught.value).splitlines() == [
        "release: unknown mechanism 'agmax'. Did you mean 'argmax'? "
        + re.search(r"Known:.*?\. ", str(caught.value))[0] + "(in release=agmax, aggregate=mean and 1 more of 4)",
        *[line for line in str(caught.value).splitlines() if line.startswith("aggregate:")],
    ]  # fmt: skip
    assert "Did you mean 'median'?" in str(caught.value)


def test_a_missing_file_and_a_name_that_is_no_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read sweep .*No such file"):
        read_sweep(tmp_path / "none.toml")
    for name in ("../up", "a/b", ".hidden", "..", " "):
        with pytest.raises(ConfigError, match="plain folder name"):
            read(tmp_path, "", name=name)
    (tmp_path / "runs" / "file").mkdir(parents=True)
    (tmp_path / "runs" / "file" / "config.toml").touch()
    with pytest.raises(ConfigError, match="is a run, not a sweep"):
        read(tmp_path, "")


def test_data_that_cannot_be_had_are_found_before_anything_starts(tmp_path):
    asked = read(tmp_path, LIGHT + '[grid]\nselect = ["all", "uniform(size=51)"]')
    with pytest.raises(ConfigError, match=r"size must be in \[1, 50\].*got 51 \(in uniform\(size=51\)\)"):
        check(asked)
    assert not asked.folder.exists()


def test_a_folder_with_runs_of_other_settings_is_refused(tmp_path):
    job = read(tmp_path, LIGHT).jobs[0]
    job.path.mkdir(parents=True)
    there = job.path / "config.toml"
    there.write_text(sweep.Resolved(job.config, {}).to_toml())
    check(read(tmp_path, LIGHT))
    with pytest.raises(ConfigError, match="was made with rounds = 2, now it is 3: choose another --name"):
        check(read(tmp_path, LIGHT.replace("rounds = 2", "rounds = 3")))
    there.write_text("rounds = ")
    with pytest.raises(ConfigError, match="config.toml cannot be read|cannot read .*config.toml"):
        check(read(tmp_path, LIGHT))


# Running: a small sweep with a run that fails, then the same command again.


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "small.toml"
    file.write_text(
        "seeds = [1]\n" + LIGHT + "[[cases]]\nname = 'a & b'\n[[cases]]\nname='no'\nlearner='nowhere:make'\n"
    )
    return folder, fedkd("sweep", "small.toml", "--workers", "2", cwd=folder)


def test_a_failure_is_reported_and_the_other_runs_go_on(swept):
    folder, done = swept
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("failed: ") == 1 and "no module named 'nowhere'" in done.stdout
    assert finished_run(folder / "runs/small/a-b-seed-1")
    assert (folder / "runs/small/no-seed-1.log").exists() and not (folder / "runs/small/a-b-seed-1.log").exists()


def test_without_a_terminal_there_are_plain_lines_with_the_time_left(swept):
    _, done = swept
    assert "\x1b" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if re.match(r"\d/2 ", line)]
    assert len(lines) == 2
    assert any(re.search(r"a & b, seed 1: student \d+\.\d%, .*kB moved, .*s", line) for line in lines)


def test_tables_of_all_kinds_are_written(swept):
    folder, done = swept
    assert "a & b" in done.stdout and "0 of 1" in done.stdout and "1 of the runs did not finish" in done.stdout
    rows = list(csv.DictReader(io.StringIO((folder / "runs/small/sweep.csv").read_text())))
    assert [(row["variant"], row["seed"], row["finished"]) for row in rows] == [
        ("a & b", "1", "true"), ("no", "1", "false")
    ]  # fmt: skip
    assert rows[0]["rounds"] == "2" and float(rows[0]["bytes_up"]) > 0 and rows[1]["student"] == ""
    found = json.loads((folder / "runs/small/sweep.json").read_text())["variants"]
    assert found["a & b"]["student"]["values"] == [float(rows[0]["student"])]
    assert "a \\& b & \\textbf{" in (folder / "runs/small/sweep.tex").read_text()
    page = (folder / "runs/small/sweep.html").read_text()
    assert "fedkd sweep" in page and "Accuracy over bytes" in page and "a &amp; b" in page and "<svg" in page


def test_the_same_command_again_repeats_only_what_failed(swept):
    folder, _ = swept
    before = (folder / "runs/small/a-b-seed-1/metrics.jsonl").stat().st_mtime_ns
    done = fedkd("sweep", "small.toml", cwd=folder)
    assert done.returncode == 1
    assert "1 of 2 runs are finished already" in done.stdout and done.stdout.count("failed: ") == 1
    assert (folder / "runs/small/a-b-seed-1/metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_of_a_sweep_is_the_run_that_fedkd_run_makes(swept):
    folder, _ = swept
    sets = [f"{k}={v}".replace(" ", "").replace('"', "") for k, v in re.findall(r"(\w+) = (.*)", LIGHT)]
    words = [word for one in [*sets, "seed=1"] for word in ("--set", one)]
    assert fedkd("run", *words, "--name", "alone", cwd=folder).returncode == 0
    alone, swept_one = (read_run(folder / "runs" / name) for name in ("alone", "small/a-b-seed-1"))
    assert [r.metrics for r in alone.rounds] == [r.metrics for r in swept_one.rounds]


def test_an_interrupt_stops_a_run_and_the_same_command_ends_it(tmp_path):
    asked = read(tmp_path, LIGHT.replace("rounds = 2", "rounds = 40"))
    (job,) = asked.jobs

    class Impatient(Board):
        def look(self, running):
            super().look(running)
            if sweep.rounds_done(job.path) > 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Impatient(asked, Console(file=io.StringIO())) as board:
        run_jobs(asked.jobs, workers=2, watcher=board)
    reached = sweep.rounds_done(job.path)
    assert 2 < reached < 40 and finished_run(job.path) is None
    assert "interrupted after round" in (tmp_path / "runs/file" / f"{job.path.name}.log").read_text()
    with Board(asked, Console(file=io.StringIO())) as board:
        assert board.before == {job: reached}
        (ending,) = run_jobs(asked.jobs, workers=2, watcher=board)
    assert not ending.error and len(finished_run(job.path).rounds) == 40


def test_a_killed_run_is_named_by_its_signal_and_a_failed_one_by_its_last_words(tmp_path):
    (job,) = read(tmp_path, LIGHT).jobs
    job.path.parent.mkdir(parents=True)
    log = job.path.with_name(f"{job.path.name}.log")
    log.write_text("1 93.1%\n")
    assert sweep._why(job, -9) == f"ended by signal 9 ({log})"
    log.write_text("round 1\nerror cannot load\nthe data\n\n")
    assert sweep._why(job, 2) == f"cannot load the data ({log})"
    log.write_text("")
    assert sweep._why(job, 3) == f"exit code 3 ({log})"


# The numbers, by hand.


def test_mean_and_spread_over_seeds_by_hand(tmp_path):
    def run(seed, scores, sent):
        path = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        lines = [
            {"round": i + 1, "metrics": {"student": s, "bytes_up": sent, "bytes_down": sent}, "clients": {},
             "seconds": {"clients": 2.0}, "latency": {}} for i, s in enumerate(scores)
        ]  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        board = {"student": scores[-1], "bytes_up_per_client": sent / 2}
        (path / "summary.json").write_text(json.dumps({"finished": True, "config": {}, "scoreboard": board}))
        return Finished(seed, path.name, finished_run(path))

    ours = Variant("ours", {"release": "argmax"}, (run(0, [0.5, 0.9], 100), run(1, [0.7, 0.94], 100)))
    theirs = Variant("theirs_1", {"release": "float16"}, (run(0, [0.4, 0.91], 500), Finished(1, "lost", None)))
    found = Findings("x", ("release",), (theirs, ours))
    assert found.best == 1  # 0.92 against 0.91
    assert table.share(ours.values("student")) == "92.0 ± 2.8%"  # sqrt(2) * 0.02
    assert ours.curve() == [(1.0, 200.0, pytest.approx(0.6)), (2.0, 400.0, pytest.approx(0.92))]
    assert table.spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "median": 2.0, "values": [1.0, 3.0]}
    assert "theirs\\_1 & 91.0 & -- & -- & 250 B & 2 kB \\\\" in found.latex()
    assert "ours & \\textbf{92.0 $\\pm$ 2.8} & -- & -- & 50 B & 400 B \\\\" in found.latex()
    assert "1 of the runs did not finish" in " ".join(found.notes)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(found.table())
    assert "1 of 2" in console.export_text()
    wide = Variant("distill=kl(temperature=1.0), release=quantize(bits=3)", {}, (run(0, [0.4], 500),))
    console.print(Findings("x", (), (wide,)).table())
    assert "1.0)" in (text := console.export_text()) and "bits=3)" in text


def test_time_left_is_told_from_the_rounds_done_since_the_start(tmp_path, monkeypatch):
    asked = read(tmp_path, "seeds = 2\n" + LIGHT.replace("rounds = 2", "rounds = 10"))
    clock = [100.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=100)
    with Board(asked, console) as board:
        first, second = asked.jobs
        first.path.mkdir(parents=True)
        (first.path / "metrics.jsonl").write_text("{}\n" * 5)
        clock[0] += 10
        board.look([first])
        assert board._time_left() == "about 30 s left"  # 5 rounds in 10 s, 15 are left
        board.ended(Ending(first, "boom", 10.0))
        board.ended(Ending(second, "boom", 10.0))
    assert "2/2 file" not in console.file.getvalue()
    assert "2/2 base, seed 1: failed: boom" in console.file.getvalue()


def test_findings_of_nothing_are_still_tables(tmp_path):
    asked = read(tmp_path, "seeds = 2\n" + LIGHT)
    asked.folder.mkdir(parents=True)
    found = write_findings(asked)
    assert found.best == -1
    assert "No run knows the accuracy of its student" in (asked.folder / "sweep.html").read_text()


def test_settings_come_from_presets_and_defaults_where_a_case_names_them_not(tmp_path):
    asked = read(tmp_path, '[[cases]]\npreset = "tally"\n[[cases]]\nrelease = "float32"\nrounds = 7')
    found = asked.findings()
    assert found.keys == ("preset", "release", "rounds")
    assert [dict(v.settings) for v in found.variants] == [
        {"preset": "tally", "release": "argmax", "rounds": 3},
        {"preset": "expert", "release": "float32", "rounds": 7},
    ]
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["release"] for row in rows] == ["argmax", "float32"]
