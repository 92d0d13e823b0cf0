"""Runs on few records, and what makes them cheap: programs that were compiled once are kept.

Each run compiles programs of its own, mostly the same ones as the run before. JAX's cache keeps
them while the tests of this folder run.
"""

import functools
import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import figures

CONFIG = """
from experiments.experiment import Experiment
from experiments.phases import *

experiment = {}
grid = {}
"""


@pytest.fixture(scope="package", autouse=True)
def compiled_programs(tmp_path_factory):
    """The folder of JAX's compilation cache."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def environment(compiled_programs):
    """For runs in processes of their own, which find the programs that are compiled here."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(len(jax.devices())),
        "JAX_COMPILATION_CACHE_DIR": str(compiled_programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


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


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw nothing."""
    monkeypatch.setattr(figures, "run_picture", lambda *args: None)
