"""Every test runs on 8 host devices, under strict promotion, with warnings as errors.

The devices are set before JAX is first used; JAX_PLATFORMS in the environment chooses others. The
doctests of jaxprune/ run under JAX's own promotion rules, as a user would run them. What one test
or one run has compiled, others find in `.pytest_cache`. With `ONE_CASE_IN=6` in the environment
a sixth of the cases of each file run: which versions of JAX it works with shows on these.
"""

import collections
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# JAX 0.9 says so much of each program that it finds there that a pipe would be full.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jax
import optax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile(
    "jaxprune",
    deadline=None,  # the first example compiles
    derandomize="CI" in os.environ,
    # Promotion is the same for every example, so it need not be set anew between them.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("jaxprune")


def pytest_collection_modifyitems(config, items):
    """Of each file the first case, and every so many after it."""
    every, seen = int(os.environ.get("ONE_CASE_IN", 1)), collections.Counter()

    def chosen(item):
        seen[item.path] += 1
        return seen[item.path] % every == 1 % every

    parts = {True: [], False: []}
    for item in items:
        parts[chosen(item)].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


@pytest.fixture(autouse=True)
def strict_promotion():
    """Arrays of different dtype or rank don't combine by themselves."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def relaxed_promotion(strict_promotion):
    """A whole test under JAX's own dtype promotion, for third-party code inside a jitted step.

    `optax.adam` and all others that correct a bias raise a float to the power of the int32 count,
    and clipping, inject_hyperparams and adafactor mix float32 with bfloat16 leaves. Flax needs none
    of this. For a whole file: `pytestmark = pytest.mark.usefixtures("relaxed_promotion")`.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def relaxed():
    """`relaxed(optax.adam(1e-3))` promotes as JAX does by default; links around it stay strict."""

    def wrap(transformation):
        transformation = optax.with_extra_args_support(transformation)

        def init(params):
            with jax.numpy_dtype_promotion("standard"):
                return transformation.init(params)

        def update(updates, state, params=None, **extra_args):
            with jax.numpy_dtype_promotion("standard"):
                return transformation.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(init, update)

    return wrap
