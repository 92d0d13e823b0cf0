import functools

import jax
import pytest

CONFIG = """
from experiments.phases import *
from experiments.run import Experiment

experiment = {}
grid = {}
"""


@pytest.fixture(scope="session")
def config_in():
    """`config_in(folder, experiment)` is the path of a config file there that defines it."""

    def write(folder, experiment, name="small", grid=()):
        path = folder / f"{name}.py"
        path.write_text(CONFIG.format(experiment, [*grid] or [{}]))
        return str(path)

    return write


@pytest.fixture
def config(tmp_path, config_in):
    """`config(experiment)` is the path of a config file that defines it."""
    return functools.partial(config_in, tmp_path)


@pytest.fixture
def one_device(monkeypatch):
    """Runs use the first device alone, which compiles faster."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
