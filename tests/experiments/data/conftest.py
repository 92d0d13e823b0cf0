import jax
import pytest

from experiments import training
from experiments.data.streamed import StreamedFeed
from tests.experiments.data.stored import PREPARED, prepare


@pytest.fixture(scope="package")
def prepared(tmp_path_factory):
    """A folder with small sets under the names of stock ones."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, version, image_shape, splits in PREPARED:
        prepare(folder, name, version, image_shape, splits)
    return folder


@pytest.fixture
def handed_out(monkeypatch):
    """The steps that feeds are asked for, and what they hand out."""
    found, payload = [], StreamedFeed.payload

    def noting(self, step):
        records = payload(self, step)
        found.append((step, jax.device_get(records)))
        return records

    monkeypatch.setattr(StreamedFeed, "payload", noting)
    return found


@pytest.fixture
def stopped_before(monkeypatch):
    """`stopped_before(step, run)` runs up to that step, saves and ends, as if killed then."""

    class Stopped(Exception):
        pass

    def stopped(at, run):
        def save_and_stop(self, step, state):
            if step == at:
                self._checkpointer.save(step, state)
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(training.Checkpoints, "save_if_due", save_and_stop)
            with pytest.raises(Stopped):
                run()

    return stopped
