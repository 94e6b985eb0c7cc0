"""Random streams depend on the seed and their name, and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from fedkd.random import derive, generator


def test_equal_names_draw_the_same_and_every_other_name_something_else():
    names = [
        (),
        ("client",),
        ("client", 7),
        ("client", 7, "round", 3),
        ("client", 7, "round", 4),
        ("client", 8, "round", 3),
        ("client", "7"),
        ("client", 77),
        ("client7",),
        (7, "client"),
    ]
    seeds = [derive(seed, *name) for seed in (0, 1) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive(seed, *name) for seed in (0, 1) for name in names]


def test_a_stream_is_the_same_on_every_machine_and_in_every_version():
    # SHA-256 of "(0, 'client', 7, 'round', 3)", its first 8 bytes as a little-endian number.
    assert derive(0, "client", 7, "round", 3) == 0x0B291884B3266C80
    assert generator(0, "client", 7).integers(1000, size=3).tolist() == [899, 415, 805]


def test_an_integer_of_numpy_names_the_same_stream_as_one_of_python():
    assert derive(np.int64(5), "client", np.int32(7)) == derive(5, "client", 7)
    assert derive(0, np.str_("client")) == derive(0, "client")


@pytest.mark.parametrize("seed", [-1, 0, 2**31, 2**64, 10**30])
def test_any_integer_is_a_seed(seed):
    assert 0 <= derive(seed, "x") < 2**64
    assert 0 <= generator(seed, "x").random() < 1


def test_drawing_from_one_stream_leaves_the_others_and_the_global_state_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    expected = generator(3, "b").random(5)
    generator(3, "a").random(1000)
    assert (generator(3, "b").random(5) == expected).all()
    assert (np.random.get_state()[1] == before).all()


def test_streams_of_neighboring_clients_are_not_correlated():
    draws = np.stack([generator(0, "client", k).standard_normal(2000) for k in range(8)])
    off_diagonal = np.corrcoef(draws)[~np.eye(8, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.1  # a standard deviation is 0.022


def test_a_stream_does_not_depend_on_the_hash_seed_of_the_process():
    program = "from fedkd.random import derive; print(derive(1, 'a', 2))"
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert int(done.stdout) == derive(1, "a", 2)
