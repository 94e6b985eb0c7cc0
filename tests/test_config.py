"""Settings: one model, every source, every mistake answered in one line."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedkd.config import Config, resolve
from fedkd.errors import ConfigError, FedkdError
from fedkd.parts import CHECKS, PRESETS, REGISTRIES

ROOT = Path(__file__).resolve().parent.parent


def problems(**keys):
    with pytest.raises(ConfigError) as caught:
        Config.read(keys, where="test")
    return str(caught.value)


def test_the_keys_and_defaults_in_pyproject_are_those_of_the_model():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["flwr"]["app"]["config"] == {**Config().to_run_config(), "resolved": False, "run-name": ""}


def test_what_flower_carries_reads_back_as_the_same_configuration():
    config = Config(rounds=7, aggregate="trimmed_mean(trim=0.1)")
    assert Config.from_run_config(config.to_run_config()) == config


def test_every_part_key_is_checked_before_anything_runs():
    assert set(REGISTRIES) <= set(CHECKS)
    assert set(CHECKS) <= set(Config.model_fields)


@pytest.mark.parametrize("key", sorted(CHECKS))
def test_an_unknown_part_names_the_key_and_what_is_known(key):
    text = problems(**{key: "no_such_part_at_all"})
    assert text.startswith(f"{key}: ")
    assert "no_such_part_at_all" in text


def test_a_typo_in_a_key_names_the_nearest():
    assert problems(temprature=2.0, ronds=3).splitlines() == [
        "unknown key 'temprature' (test). See: fedkd config show.",
        "unknown key 'ronds' (test). Did you mean 'rounds'?",
    ]


def test_a_typo_in_a_part_names_the_nearest():
    assert "unknown aggregator 'medain'. Did you mean 'median'?" in problems(aggregate="medain")


def test_a_typo_in_an_option_names_the_nearest():
    assert "no option 'temprature'. Did you mean 'temperature'?" in problems(sharpen="era(temprature=0.1)")


def test_all_problems_are_told_at_once():
    text = problems(aggregate="medain", sharpen="er", rounds=3)
    assert "aggregate:" in text
    assert "sharpen:" in text


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"rounds": "three"}, "rounds must be a whole number, got 'three'"),
        ({"rounds": True}, "rounds must be a whole number, got True"),
        ({"quorum": 1.5}, "quorum must be at most 1, got 1.5"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"delta": 1.0}, "delta must be below 1, got 1.0"),
        ({"delta": 0}, "delta must be above 0, got 0"),
        ({"pooled": "maybe"}, "pooled must be true or false, got 'maybe'"),
        ({"student": 3}, "student must be text, got 3"),
        ({"student": "none", "feedback": "student"}, "feedback: 'student' needs a student"),
        ({"resume": True}, "resume: needs output"),
        ({"aggregate": "trimmed_mean(trim='a')"}, "'trim' must be float, got 'a'"),
        ({"release": "float16 | "}, "one part between two '|' is empty"),
        ({"aggregate": "era(__import__('os'))"}, "write it like 'name' or 'name(option=value)'"),
        ({"protect": "dp"}, "unknown protection 'dp'"),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_would_be_right(keys, sentence):
    text = problems(**keys)
    assert sentence in text
    assert len(text.splitlines()) == 1


def test_whole_numbers_pass_for_floats():
    assert Config.read({"deadline": 5, "grace": 5}, where="test").deadline == 5.0


def test_precedence_is_preset_then_file_then_environment_then_set(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('rounds = 4\nseed = 4\nclients = 4\nsharpen = "none"\n')
    got = resolve(preset="ds_fl", file=file, sets=["clients=6"], environ={"FEDKD_CLIENTS": "5", "FEDKD_SEED": "5"})
    assert (got.config.rounds, got.config.seed, got.config.clients) == (4, 5, 6)
    assert got.config.sharpen == "none"
    assert got.config.aggregate == "mean"
    assert got.origins["rounds"] == str(file)
    assert got.origins["seed"] == "environment"
    assert got.origins["clients"] == "--set"
    assert got.origins["expertise"] == "preset ds_fl"


def test_a_preset_in_the_file_counts_and_the_command_line_wins(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('preset = "ds_fl"\n')
    assert resolve(file=file, environ={}).config.sharpen == "era(temperature=0.1)"
    assert resolve(file=file, preset="tally", environ={}).config.aggregate == "vote"


def test_a_resolved_configuration_given_back_as_a_file_is_the_same(tmp_path):
    first = resolve(preset="tally", sets=["data=npz:a'b\\c.npz", "learner=cnn, mlp(hidden=8)"], environ={})
    file = tmp_path / "config.toml"
    file.write_text(first.to_toml())
    assert resolve(file=file, environ={}).config == first.config


def test_a_flower_pyproject_is_a_configuration_file_too():
    assert resolve(file=ROOT / "pyproject.toml", environ={}).config == Config()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid_and_says_where_it_comes_from(name):
    assert resolve(preset=name, environ={}).config.preset == name
    assert len(PRESETS[name][0]) > 20


def test_a_missing_file_and_a_file_that_is_no_toml_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot read configuration .*No such file"):
        resolve(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match="not TOML"):
        resolve(file=tmp_path / "bad.toml")


@pytest.mark.parametrize("text", ["rounds", "=3", ""])
def test_a_set_without_a_key_or_value_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match="write it like --set rounds=5"):
        resolve(sets=[text], environ={})


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from([*Config.model_fields, "x", "rund"]),
        st.one_of(st.text(max_size=12), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
        max_size=4,
    )
)
def test_any_nonsense_is_either_valid_or_an_error_of_ours(values):
    try:
        Config.read(values, where="fuzz")
    except FedkdError as error:
        assert str(error)


def test_a_preset_named_in_python_or_on_flowers_command_line_is_applied():
    assert Config(preset="ds_fl").sharpen == "era(temperature=0.1)"
    assert Config(preset="ds_fl", sharpen="none").sharpen == "none"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    merged = {**pyproject, "preset": "one_shot", "clients": 2}  # what flwr run -c "preset='one_shot' clients=2" gives
    config = Config.from_run_config(merged)
    assert (config.rounds, config.feedback, config.clients) == (1, "none", 2)


def test_what_our_own_launcher_sends_means_every_value_even_where_it_equals_a_default():
    config = resolve(preset="ds_fl", sets=["release=float16"], environ={}).config
    assert Config.from_run_config(config.to_run_config()) == config
    assert config.release == Config().release


def test_an_unknown_preset_in_python_names_the_nearest():
    assert "Did you mean 'ds_fl'?" in problems(preset="ds_lf")


def test_a_protection_on_top_of_the_default_names_the_preset_that_sets_the_rest():
    for protect, preset in (("dp_sgd", "private"), ("central", "private_clients"), ("distributed", "private_masked")):
        with pytest.raises(ConfigError) as caught:
            resolve(sets=[f"protect={protect}", "epsilon=3"], environ={})
        assert str(caught.value).endswith(f"\n`--preset {preset}` sets all of this")
        resolve(preset=preset, sets=["epsilon=3"], environ={})
    with pytest.raises(ConfigError) as caught:  # what was asked for would still be wrong under the preset
        resolve(sets=["protect=dp_sgd", "epsilon=3", "expertise=density"], environ={})
    assert "--preset" not in str(caught.value)


def test_a_sweep_is_not_read_as_one_run(tmp_path):
    file = tmp_path / "two.toml"
    file.write_text("seeds = 2\n[base]\nrounds = 1\n")
    with pytest.raises(ConfigError, match="two.toml is a sweep, many runs; run it with: fedkd sweep .*two.toml"):
        resolve(file=file, environ={})
