import pytest
from flax import nnx

from experiments.models.convnets import ConvNet


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth must be 2, 4, 6 or 8, got 3"):
        ConvNet(3, 10, rngs=nnx.Rngs(0))
