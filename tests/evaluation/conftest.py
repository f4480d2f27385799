"""One enumerable target with a twist that is no good, for what estimates are held against."""

import pytest
from smc.toys import table_target

import tsmc_widgets as tw
from tsmc_widgets.twists import TableTwist


@pytest.fixture(scope="module")
def target():
    return table_target(3, 4, seed=11)


@pytest.fixture(scope="module")
def oracle(target):
    return tw.exact(target)


@pytest.fixture(scope="module")
def twist():
    return TableTwist.random(3, 4, seed=12)
