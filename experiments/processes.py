"""The processes of a run, one a host: how they start, agree and stop.

All run the same program on the same arguments, and must take the same decisions. What they might
see differently (a clock, a folder) process 0 decides for all; it alone writes logs and prints.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.usage import UsageError

STOPPED = 75  # the exit code of a run that was asked to stop: EX_TEMPFAIL, try again later

_ALONE = "--processes=1 runs this process by itself"
_asked = False


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes, and takes signals; before JAX is used.

    Who the others are is said by all three arguments, or by the environment where it is one that
    `jax.distributed.initialize` knows, such as a Cloud TPU or SLURM. `processes` 1, alone, says
    that there are none.
    """
    if (coordinator, processes, process) != (None, 1, None):
        _join(coordinator, processes, process)
    # After JAX has set a handler of its own. Its way to one step for all is not used, since orbax
    # asks for it too, with other numbers of steps.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _ask_to_stop)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _join(coordinator, processes, process) -> None:
    given = [coordinator, processes, process]
    if any(each is not None for each in given):
        _check(coordinator, processes, process)
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise UsageError(f"the environment names other processes: {error}; {_ALONE}") from error
    except RuntimeError as error:
        raise UsageError(f"can't join the other processes: {error}; {_ALONE}") from error


def _check(coordinator, processes, process) -> None:
    if None in (coordinator, processes, process):
        raise UsageError("--coordinator, --processes and --process go together, in every process")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--coordinator must be host:port of process 0, got {coordinator!r}")
    if processes < 1:
        raise UsageError(f"--processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        raise UsageError(
            f"--process must be between 0 and {processes - 1}, one less than --processes, "
            f"got {process}"
        )


# Agreeing ---------------------------------------------------------------------------------------


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def shown(*values: int) -> np.ndarray:
    """The values of all processes, a row for each; waits for all."""
    return multihost_utils.process_allgather(np.array(values, np.int32))


def agreed(value: int) -> int:
    """The value that process 0 has."""
    return int(shown(value)[0, 0])


def by_main(action: Callable[[], None]) -> None:
    """Process 0 does it while the others wait; its UsageError ends all of them."""
    failed = None
    if is_main():
        try:
            action()
        except UsageError as error:
            failed = error
    if agreed(failed is not None):
        raise failed or UsageError("process 0 can't go on, and says why")


def write(path: Path, content: str | bytes) -> None:
    """Process 0 makes or replaces a file, at one stroke."""
    if is_main():
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)


# Stopping ---------------------------------------------------------------------------------------


def asked_to_stop() -> bool:
    """Whether this process was, by SIGTERM or from the keyboard."""
    return _asked


def stop_if_asked() -> None:
    """Ends all processes if one was asked to stop; for moments when nothing has to be saved."""
    if shown(asked_to_stop()).any():
        sys.exit(STOPPED)


def _ask_to_stop(number: int, frame: object) -> None:
    """Notes a signal; the same one again does what it always does."""
    global _asked
    _asked = True
    os.write(2, b"stops after the step that runs; once more, and it stops at once\n")
    signal.signal(
        number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
    )
