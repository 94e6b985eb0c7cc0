"""What the documents say is what the software does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd import reference

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SMALL = [
    "--set",
    "rounds=1",
    "--set",
    "clients=4",
    "--set",
    "local_epochs=1",
    "--set",
    "distill_epochs=2",
    "--set",
    "pooled=false",
]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)


def commands(path):
    """Yield the fedkd command lines of a document's shell blocks, comments cut off."""
    for block in blocks(path, "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fedkd"]:
                yield words
            elif "&&" in words and words[words.index("&&") + 1] == "fedkd":
                yield words[words.index("&&") + 1 :]


def fedkd(words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedkd", *words[1:]]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_every_fedkd_command_of_the_readme_works(tmp_path):
    seen = []
    for words in commands(ROOT / "README.md"):
        if "--engine" in words:
            continue  # test_engines.py runs Flower's simulation
        small = SMALL if words[1] == "run" else []
        done = fedkd([*words, *small], tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        seen.append(words[1])
    assert {"run", "compare", "parts", "config", "resume", "doctor"} <= set(seen)


def test_the_guide_for_ones_own_model_and_data_works_as_written(tmp_path):
    guide = ROOT / "docs" / "bring-your-own.md"
    model, data, mine = blocks(guide, "python")[:3]
    (tmp_path / "site_model.py").write_text(model)
    (tmp_path / "mine.py").write_text(mine)
    subprocess.run([sys.executable, "-c", data], cwd=tmp_path, check=True)
    words, second = [w for w in commands(guide) if w[1] == "run"]
    done = fedkd([*words, "--name", "mine"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FedAvg is impossible" in done.stdout
    report = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert "site_model:make" in report
    done = fedkd([*second, "--name", "second"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "student mine:net" in done.stdout


def test_the_reference_is_made_from_todays_code():
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference.markdown()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_files_that_architecture_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:fedkd|server|clients|simulations|tests)/[\w/.]+\.(?:py|json))", text):
        assert (ROOT / name).exists(), name
    modules = {p.stem for p in (ROOT / "fedkd").glob("*.py")} - {"__init__", "__main__"}
    missing = {m for m in modules if f"`{m}`" not in text and f"`{m}.py`" not in text and f"fedkd/{m}.py" not in text}
    assert not missing, f"ARCHITECTURE.md does not mention {sorted(missing)}"


def test_the_first_command_of_the_readme_installs_and_runs():
    first, second = blocks(ROOT / "README.md", "bash")[:2]
    assert first.strip() == "pip install -c constraints.txt '.[torch,light]' && fedkd run"
    assert second.strip() == "pip install -c constraints.txt -e '.[dev]' && python -m pytest"
