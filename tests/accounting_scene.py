"""Events and mechanisms that accountants are tried on."""

from hypothesis import strategies as st

from fedkd.events import (
    Gaussian,
    Laplace,
    Pure,
    RandomizedResponse,
    SampledGaussian,
)

DELTA = 1e-5


sizes = st.floats(0.3, 20.0)
plans = st.lists(
    st.one_of(
        st.builds(Gaussian, sizes, st.integers(1, 20)),
        st.builds(SampledGaussian, st.floats(0.01, 0.9), st.floats(0.5, 10.0), st.integers(1, 50)),
        st.builds(Laplace, st.floats(0.5, 30.0), st.integers(1, 20)),
        st.builds(RandomizedResponse, st.integers(2, 20), st.floats(0.05, 3.0), st.integers(1, 20)),
        st.builds(Pure, st.floats(0.05, 1.0), st.integers(1, 20)),
    ),
    min_size=1,
    max_size=3,
)
