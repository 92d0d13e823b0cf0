import jax
import pytest

from tests.experiments.runs import DENSE, run_phases


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """A folder with a run whose first phase is `DENSE`, to reuse, and that run's result."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(jax, "device_count", lambda: 1)
        result, _ = run_phases(folder / "dense", DENSE, limit=512, evaluations=2, steps_per_call=8)
    return folder, result


@pytest.fixture
def after_dense(trained, tmp_path):
    """`after_dense(name, *phases)` is the result and the network of a run that begins so."""

    def run(name, *phases):
        short = {"limit": 512, "evaluations": 2, "steps_per_call": 8}
        return run_phases(tmp_path / name, DENSE, *phases, reuse=trained[0], **short)

    return run
