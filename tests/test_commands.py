"""Words that the command line does not know: one line, and the nearest known word once."""

import pytest
from typer.testing import CliRunner

from fedkd.commands.main import app


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["statu"], "status"),
        (["nodes", "lits"], "list"),
        (["pki", "shwo"], "show"),
        (["config", "chek"], "check"),
        (["ledger", "verfy"], "verify"),
        (["audit", "mechansm"], "mechanism"),
        (["nodes", "list", "--hom", "x"], "--home"),
    ],
)
def test_the_nearest_word_is_suggested_once(words, meant):
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert done.output.count("Did you mean") == 1
    assert done.output.count(f"'{meant}'") == 1
