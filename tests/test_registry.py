"""Parts are chosen by one string that is read and never run."""

import pytest

from fedkd.errors import SpecError, did_you_mean
from fedkd.registry import Registry, parse, split

part = Registry("aggregator")


@part
def mean(p, w):
    """Do nothing."""


@part
def median(p, w, *, fallback: str = "mean", share: float = 0.5):
    """Do nothing."""


@part
def gaussian(p, w, *, sigma: float, steps: int = 1, secure: bool = False, cap: float | None = None):
    """Do nothing."""


@part
def all_(p, w):
    """Stand in for a name that Python has taken."""


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mean", ("mean", {})),
        (" mean ( ) ", ("mean", {})),
        ("era(temperature=0.1)", ("era", {"temperature": 0.1})),
        ("era(temperature=-1e-3)", ("era", {"temperature": -0.001})),
        ("cnn(sizes=(8, 16), name='a|b')", ("cnn", {"sizes": (8, 16), "name": "a|b"})),
        ("f(a=None, b=True, c=[1])", ("f", {"a": None, "b": True, "c": [1]})),
        ("npz:pool.npz", ("npz", {"": "pool.npz"})),
        (r"npz:C:\data\pool.npz", ("npz", {"": r"C:\data\pool.npz"})),
    ],
)
def test_a_spec_is_a_name_with_literal_keyword_options(spec, expected):
    assert parse(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "era(",
        "era)",
        "era(0.1)",
        "era(temperature=open('x'))",
        "era(__import__('os'))",
        "a.b(c=1)",
        "era(**{'a': 1})",
        "era(a=1, a=2)",
        "f(a={[]: 1})",
        "f(a={{1}})",
        "lambda x: 1",
        "f(a=1)(b=2)",
        "a\x00b",
        "1",
        "f(a=b)",
        "f(a=" + "(" * 5000,
        "f(a=" + "9" * 5000 + ")",
        "a b",
        "a; b",
        "mean:",
        "\ud800",
    ],
)
def test_what_is_no_spec_says_how_to_write_one(spec):
    with pytest.raises(SpecError, match=r"write it like 'name' or 'name\(option=value\)'"):
        parse(spec)


def test_nothing_in_a_spec_is_ever_run(tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(SpecError):
        part.build(f"gaussian(sigma=open({str(trap)!r}, 'w'))")
    assert not trap.exists()


def test_building_binds_the_options_and_leaves_the_others_at_their_defaults():
    assert part.build("median(share=0.4)").keywords == {"share": 0.4}
    assert part.build("gaussian(sigma=2, cap=None)").keywords == {"sigma": 2.0, "cap": None}
    assert type(part.build("gaussian(sigma=2)").keywords["sigma"]) is float


def test_the_short_form_sets_the_first_option():
    assert part.build("median:mean").keywords == {"fallback": "mean"}
    with pytest.raises(SpecError, match="aggregator 'mean' takes no option, got 'mean:x'"):
        part.build("mean:x")


def test_a_misspelled_name_gets_the_nearest_and_all_known():
    with pytest.raises(SpecError) as error:
        part.build("medain")
    assert str(error.value) == (
        "unknown aggregator 'medain'. Did you mean 'median'? Known: all, gaussian, mean, median."
    )


def test_a_misspelled_option_gets_the_nearest_and_all_known():
    with pytest.raises(SpecError) as error:
        part.build("gaussian(sigam=1.0)")
    assert str(error.value) == (
        "aggregator 'gaussian' has no option 'sigam'. Did you mean 'sigma'? It takes sigma, steps, secure, cap."
    )
    with pytest.raises(SpecError, match="It takes none"):
        part.build("mean(x=1)")


def test_of_two_unknown_options_it_is_always_the_same_one_that_is_named():
    with pytest.raises(SpecError, match="no option 'aa'"):
        part.build("mean(zz=1, aa=1, mm=1)")


def test_a_missing_option_shows_when_the_part_is_built_and_not_when_it_is_called():
    with pytest.raises(SpecError, match=r"aggregator 'gaussian' needs 'sigma', as in 'gaussian\(sigma=...\)'"):
        part.build("gaussian")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gaussian(sigma='1')", "'sigma' must be float, got '1'"),
        ("gaussian(sigma=None)", "'sigma' must be float, got None"),
        ("gaussian(sigma=True)", "'sigma' must be float, got True"),
        ("gaussian(sigma=1.0, steps=2.5)", "'steps' must be int, got 2.5"),
        ("gaussian(sigma=1.0, steps=True)", "'steps' must be int, got True"),
        ("gaussian(sigma=1.0, secure=1)", "'secure' must be bool, got 1"),
        ("gaussian(sigma=1.0, cap='a')", "'cap' must be float or None, got 'a'"),
        ("median(fallback=3)", "'fallback' must be str, got 3"),
        ("gaussian(sigma=1" + "0" * 400 + ")", "'sigma' must be float, got 1000"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_when_the_part_is_built(spec, message):
    with pytest.raises(SpecError, match=message):
        part.build(spec)


def test_a_name_that_python_has_taken_is_registered_without_its_underscore():
    assert part.build("all").func is all_
    assert part.names() == ["all", "gaussian", "mean", "median"]
    assert [name for name, _ in part] == part.names()


def test_a_chain_is_built_from_the_left():
    assert [p.func for p in part.chain("mean | median(share=0.3)|all")] == [mean, median, all_]


@pytest.mark.parametrize("spec", ["", "mean |", "| mean", "mean || mean", " | "])
def test_a_chain_with_a_gap_is_refused(spec):
    with pytest.raises(SpecError, match="empty"):
        part.chain(spec)


def test_a_split_respects_brackets_and_quotes():
    assert split("a(x=(1, 2)), b(y=[3, 4]),c", ",") == ["a(x=(1, 2))", "b(y=[3, 4])", "c"]
    assert split("a(x='|') | b", "|") == ["a(x='|')", "b"]
    assert split('a(x="(") | b', "|") == ['a(x="(")', "b"]


def test_brackets_that_do_not_match_are_refused_in_the_end():
    for spec in ("a(x=1 | b", "a) | b"):
        with pytest.raises(SpecError):
            [parse(one) for one in split(spec, "|")]


@pytest.mark.parametrize("spec", ["npz(path=data.npz)", "npz( path = my/data.npz )"])
def test_text_without_quotes_is_shown_with_quotes_and_in_the_short_form(spec):
    with pytest.raises(SpecError, match=r"Quote text, as in npz\(path='.*data.npz'\).* short form npz:.*data.npz\.$"):
        parse(spec)


def test_a_missing_text_option_is_shown_with_its_quotes():
    data = Registry("data")

    @data
    def npz(*, path: str): ...

    with pytest.raises(SpecError, match=r"needs 'path', as in npz\(path='data.npz'\) .*npz:data.npz"):
        data.build("npz")


def test_an_option_without_its_name_is_shown_with_it():
    with pytest.raises(SpecError, match=r"aggregator 'gaussian': options need their names, as in gaussian\(sigma=-1\)"):
        part.build("gaussian(-1)")
    with pytest.raises(SpecError, match="write it like 'name' or 'name\\(option=value\\)'"):
        part.build("gaussian(open('x'))")


def test_capitals_and_hyphens_are_no_obstacle_to_the_nearest():
    assert did_you_mean("DS-FL", ["fedmd", "ds_fl"]) == " Did you mean 'ds_fl'?"
    assert did_you_mean("fashionmnist", ["MNIST", "FashionMNIST"]) == " Did you mean 'FashionMNIST'?"
    assert did_you_mean("x", ["fedmd"]) == ""
