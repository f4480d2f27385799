import pytest
from twists.forms import LMS

from tsmc_widgets.models import HuggingFaceLM


@pytest.fixture(scope="session", params=LMS)
def lm(request, checkpoint):
    """Base models of several architectures, one with a sliding window."""
    return HuggingFaceLM.from_pretrained(checkpoint(request.param))
