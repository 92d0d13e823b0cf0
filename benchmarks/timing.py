"""Times compiled functions against each other in one run, in turn: noise hits all alike."""

import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Timed(NamedTuple):
    """Median milliseconds of one call, compile seconds, and MiB of output and temporary memory."""

    milliseconds: float
    compile_seconds: float
    output_mib: float
    temporary_mib: float


def compare(
    cases: dict[str, tuple[Callable, tuple]], repeats: int = 15, carried: int = 0
) -> dict[str, Timed]:
    """Compiles and warms up every case (function, arguments), then times them in turn.

    The first `carried` arguments are donated and replaced by the first results, as in training.
    """
    compiled, seconds, times, states = {}, {}, {name: [] for name in cases}, {}

    def call(name):
        results = jax.block_until_ready(compiled[name](*states[name]))
        if carried:
            states[name] = (*results[:carried], *states[name][carried:])

    for name, (function, arguments) in cases.items():
        states[name] = jax.tree.map(jnp.copy, arguments)
        start = time.perf_counter()
        donated = jax.jit(function, donate_argnums=tuple(range(carried)))
        compiled[name] = donated.lower(*states[name]).compile()
        seconds[name] = time.perf_counter() - start
        call(name)
    names = list(cases)
    for turn in range(repeats):
        # In another order each time: a case is slower after one that has emptied the caches.
        for name in random.Random(turn).sample(names, len(names)):
            start = time.perf_counter()
            call(name)
            times[name].append(time.perf_counter() - start)
    result = {}
    for name in cases:
        memory = compiled[name].memory_analysis()
        result[name] = Timed(
            1e3 * statistics.median(times[name]),
            seconds[name],
            memory.output_size_in_bytes / 2**20,
            memory.temp_size_in_bytes / 2**20,
        )
    return result


def table(title: str, timed: dict[str, Timed], reference: str) -> str:
    """A Markdown table with each time as a multiple of the reference's."""
    lines = [
        f"### {title}",
        "",
        f"| | median ms | times *{reference}* | compile s | output MiB | temporary MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in timed.items():
        ratio = row.milliseconds / timed[reference].milliseconds
        lines.append(
            f"| {name} | {row.milliseconds:.2f} | {ratio:.3g} | {row.compile_seconds:.1f} "
            f"| {row.output_mib:.1f} | {row.temporary_mib:.1f} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """One line about where and with what this was measured."""
    device = jax.devices()[0]
    return (
        f"jax {jax.__version__}, Python {platform.python_version()}, {jax.device_count()} x "
        f"{device.device_kind} ({device.platform})\n"
    )
