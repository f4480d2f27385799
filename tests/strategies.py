"""What Hypothesis draws for the tests: log weights far apart, some of them -inf."""

import math

import torch
from hypothesis import strategies as st

LOG_WEIGHT = st.floats(-800, 800) | st.just(-math.inf)
UNIFORM = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, 1 - 2.0**-53])


@st.composite
def log_weights(draw, *, alive=True, max_size=12):
    """A row of log weights, at least one of them finite if ``alive``."""
    row = draw(st.lists(LOG_WEIGHT, min_size=1, max_size=max_size))
    if alive and max(row) == -math.inf:
        row[draw(st.integers(0, len(row) - 1))] = draw(st.floats(-800, 800))
    return torch.tensor(row, dtype=torch.float64)


@st.composite
def weights_and_uniforms(draw):
    """Some runs of log weights with a uniform for each particle."""
    runs, size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    rows = st.lists(LOG_WEIGHT, min_size=size, max_size=size)
    uniforms = st.lists(UNIFORM, min_size=size, max_size=size)
    tables = [draw(st.lists(kind, min_size=runs, max_size=runs)) for kind in (rows, uniforms)]
    return tuple(torch.tensor(table, dtype=torch.float64) for table in tables)
