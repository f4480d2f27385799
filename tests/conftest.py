"""Settings that hold for every test.

Under pytest, and only there, annotated functions of the package are checked against their
jaxtyping shapes. The hook must stand before the package's first import, hence here.
"""

import os
from functools import cache

# Read by torch when it is first imported, and inherited by the kernels that tests start. Processes
# that share the cores have one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
# No test may depend on a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import shapes
from hypothesis import HealthCheck, settings

shapes.check_first_calls("tsmc_widgets")

# A busy machine is no finding.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

from browser_support import browser, chromium, open_notebook, page  # noqa: F401


@pytest.fixture(autouse=True)
def checked_shapes():
    """The first calls of every function in this test are checked."""
    shapes.forget_calls()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a tiny transformers model with random weights, by the name of its architecture."""
    from models.checkpoints import make_checkpoint

    return cache(lambda name: make_checkpoint(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def gpt2(checkpoint):
    """A tiny transformers model with random weights, in float32."""
    from tsmc_widgets.models import HuggingFaceLM

    return HuggingFaceLM.from_pretrained(checkpoint("gpt2"))
