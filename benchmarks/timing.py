"""Times compiled functions against each other in one run, in turn: noise hits all alike."""

import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Timed(NamedTuple):
    """Medians of one call, compile seconds, and MiB of output and temporary memory.

    Page faults tell where memory that one call has given back to the system comes anew in the next:
    glibc's malloc does so above 32 MiB.
    """

    milliseconds: float
    compile_seconds: float
    output_mib: float
    temporary_mib: float
    page_faults: float


def compare(
    cases: dict[str, tuple[Callable, tuple]], repeats: int = 15, carried: int = 0
) -> dict[str, Timed]:
    """Compiles and warms up every case (function, arguments), then times them in turn.

    The first `carried` arguments are donated and replaced by the first results, as in training.
    """
    compiled, seconds, states = {}, {}, {}
    times = {name: [] for name in cases}
    faults = {name: [] for name in cases}

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
            before, start = _page_faults(), time.perf_counter()
            call(name)
            times[name].append(time.perf_counter() - start)
            faults[name].append(_page_faults() - before)
    result = {}
    for name in cases:
        memory = compiled[name].memory_analysis()
        result[name] = Timed(
            1e3 * statistics.median(times[name]),
            seconds[name],
            memory.output_size_in_bytes / 2**20,
            memory.temp_size_in_bytes / 2**20,
            statistics.median(faults[name]),
        )
    return result


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def table(title: str, timed: dict[str, Timed], *references: str) -> str:
    """A Markdown table with each time as a multiple of the references'."""
    names = "".join(f" times *{name}* |" for name in references)
    lines = [
        f"### {title}",
        "",
        f"| | median ms |{names} compile s | output MiB | temporary MiB | page faults |",
        "|---" * (6 + len(references)) + "|",
    ]
    for name, row in timed.items():
        ratios = [row.milliseconds / timed[other].milliseconds for other in references]
        lines.append(
            f"| {name} | {row.milliseconds:.2f} | "
            + "".join(f"{ratio:.3g} | " for ratio in ratios)
            + f"{row.compile_seconds:.1f} | {row.output_mib:.1f} | {row.temporary_mib:.1f} "
            f"| {row.page_faults:.0f} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """One line about where and with what this was measured."""
    device = jax.devices()[0]
    return (
        f"jax {jax.__version__}, Python {platform.python_version()}, {jax.device_count()} x "
        f"{device.device_kind} ({device.platform})\n"
    )
