"""What an N:M kernel looks like."""

import numpy as np

HIDDEN = "fc[12]"


def check_pattern(kernel, n, m, transposable):
    """At most n non-zeros; whole groups of a mask have n exactly."""
    kept = np.asarray(kernel) != 0
    inputs, outputs = kept.shape
    assert (kept[: inputs // m * m].reshape(-1, m, outputs).sum(1) <= n).all()
    if transposable:
        assert (kept[:, : outputs // m * m].reshape(inputs, -1, m).sum(2) <= n).all()
