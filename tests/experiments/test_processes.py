"""Two processes with four devices each, on this machine, do what one process with eight does.

All of them use Gloo's collectives, also the one by itself, so that sums are in the same order.
"""

import dataclasses
import random
import signal
import socket
import subprocess
import sys
import time

import chex
import pytest

from experiments.phases import TrainPattern
from tests.experiments.runs import ROOT, SEARCH, SMALL, evaluated, outcome, rows

PHASES = (
    dataclasses.replace(SEARCH, draws=1),
    TrainPattern(epochs=1, batch=64, where="fc[12]/kernel"),
)
EXPERIMENT = dataclasses.replace(SMALL, phases=PHASES, shard_from=1, evaluations=2)
NAMES = ("0-search", "1-train")


def start(environment, config, folder, processes=2, mesh="data:8"):
    """The processes of one run."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{found.getsockname()[1]}"
    flags = [f"--out={folder}", f"--mesh={mesh}", "--checkpoint_seconds=0"]
    flags += [f"--coordinator={coordinator}", f"--processes={processes}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.run", config, *flags, f"--process={process}"],
            cwd=ROOT,
            env={**environment, "JAX_NUM_CPU_DEVICES": str(8 // processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]


def ended(processes):
    """The exit codes of processes, and what they printed."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], printed


def until(moment, folder, processes):
    """Waits for a moment of the run."""
    while not moment(folder):
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.001)


def kill(processes, which):
    """Kills one process by itself, and then the others, which wait for it."""
    processes[which].send_signal(signal.SIGKILL)
    time.sleep(0.2)
    for process in processes:
        process.kill()
    ended(processes)


@pytest.fixture(scope="module")
def environment(environment):
    """Compiling takes most of the time of these runs."""
    return {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def path(config_in, tmp_path_factory):
    return config_in(tmp_path_factory.mktemp("config"), EXPERIMENT)


@pytest.fixture(scope="module")
def one_process(environment, path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "out"
    codes, printed = ended(start(environment, path, folder, processes=1))
    assert codes == [0], printed
    return folder


def assert_same_run(folder, reference):
    for name in NAMES:
        chex.assert_trees_all_equal(outcome(folder, name), outcome(reference, name))
    assert rows(folder, without=["seconds"]) == rows(reference, without=["seconds"])
    assert (folder / "table.txt").read_text() == (reference / "table.txt").read_text()


def test_two_processes_one_of_them_killed_do_what_one_does(
    environment, path, one_process, tmp_path
):
    """Masks, counts and weights are the same to the bit; process 0 alone says so."""
    folder = tmp_path / "out"
    processes = start(environment, path, folder)
    until(evaluated("search", 1), folder, processes)
    kill(processes, which=1)
    codes, (first, second) = ended(start(environment, path, folder))
    assert codes == [0, 0], (first, second)
    assert "search: goes on at step" in first and "of 50,200 weights" in first
    assert "search" not in second and "weights" not in second
    assert_same_run(folder, one_process)


@pytest.mark.slow
def test_one_process_is_asked_to_stop_and_both_do(environment, path, one_process, tmp_path):
    folder = tmp_path / "out"
    processes = start(environment, path, folder)
    until(evaluated("search", 1), folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, (first, second) = ended(processes)
    assert codes == [75, 75], (first, second)
    assert "search: stopped at step" in first and "stopped" not in second
    codes, printed = ended(start(environment, path, folder))
    assert codes == [0, 0], printed
    assert_same_run(folder, one_process)


@pytest.mark.slow
def test_two_processes_killed_at_ten_moments_do_what_one_does(
    environment, path, one_process, tmp_path
):
    folder, moments = tmp_path / "out", random.Random(0)
    for _ in range(10):
        processes = start(environment, path, folder)
        until(lambda folder: (folder / "settings.txt").exists(), folder, processes)
        time.sleep(moments.uniform(0, 12))
        kill(processes, which=moments.randrange(2))
    codes, printed = ended(start(environment, path, folder))
    assert codes == [0, 0], printed
    assert_same_run(folder, one_process)
