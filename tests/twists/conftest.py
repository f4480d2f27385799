import pytest
from models.checkpoints import make_checkpoint

from tsmc_widgets.models import HuggingFaceLM


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A tiny transformers model with random weights, in float32."""
    folder = make_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2"))
    return HuggingFaceLM.from_pretrained(folder)
