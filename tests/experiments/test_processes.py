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
import numpy as np
import pytest

from experiments import outcomes, processes
from experiments.devices import Devices
from experiments.phases import Reconstruct, TrainPattern
from experiments.usage import UsageError
from tests.experiments.runs import (
    ROOT,
    SEARCH,
    SMALL,
    evaluated,
    initial,
    kept_of,
    outcome,
    rows,
)

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
    assert all(process.poll() is None for process in processes)
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


def finished(environment, config, folder, processes):
    """The folder of a run that nothing disturbs, and what its processes print."""
    codes, printed = ended(start(environment, config, folder, processes))
    assert codes == [0] * processes, printed
    return folder, printed


@pytest.fixture(scope="module")
def one_process(environment, path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "out"
    return finished(environment, path, folder, processes=1)[0]


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
    _, (first, second) = finished(environment, path, folder, processes=2)
    assert "search: goes on at step" in first and "of 50,200 weights" in first
    assert "search: " not in second and "weights" not in second
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
    finished(environment, path, folder, processes=2)
    assert_same_run(folder, one_process)


@pytest.mark.slow
def test_two_processes_killed_at_ten_moments_do_what_one_does(environment, config, tmp_path):
    phases = tuple(dataclasses.replace(phase, epochs=10) for phase in PHASES)
    path = config(dataclasses.replace(EXPERIMENT, phases=phases, evaluations=20))
    reference, _ = finished(environment, path, tmp_path / "one", processes=1)
    folder, chance, seen = tmp_path / "out", random.Random(0), -1
    for _ in range(10):
        processes = start(environment, path, folder)
        until(lambda folder, seen=seen: lines(folder) > seen, folder, processes)
        time.sleep(chance.uniform(0, 2))
        seen = lines(folder)
        kill(processes, which=chance.randrange(2))
    finished(environment, path, folder, processes=2)
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_two_processes_reconstruct_a_network_with_batch_norm(environment, config, tmp_path):
    """What the phase's function closes over, BatchNorm's averages, lies on all devices."""
    phase = Reconstruct(records=64, batch=32, n=1, m=4, where="blocks/[01]/layers/0/conv/kernel")
    path = config(dataclasses.replace(EXPERIMENT, model="resnet20", phases=(phase,)))
    one, two = (finished(environment, path, tmp_path / f"{n}", n)[0] for n in (1, 2))
    like = initial(model="resnet20")
    found, expected = (
        outcomes.load(folder / "network-0-reconstruct", like, Devices.all())
        for folder in (two, one)
    )
    chex.assert_trees_all_equal(found, expected)
    assert kept_of(found.mask) == kept_of(like.mask) - 2 * 3 * 3 * 16 * 12


def lines(folder):
    """How many evaluations a run has written; -1 before it has begun."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else -1


# alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("here:1", None, None), "--coordinator, --processes and --process go together"),
        ((None, 2, 0), "--coordinator, --processes and --process go together"),
        (("here", 2, 0), "--coordinator must be host:port of process 0, got 'here'"),
        (("here:port", 2, 0), "--coordinator must be host:port of process 0, got 'here:port'"),
        (("here:1", 2, 2), "--process must be between 0 and 1, one less than --processes, got 2"),
        (("here:1", 0, 0), "--processes must be at least 1, got 0"),
        # JAX is in use already, as in a notebook.
        (
            ("127.0.0.1:1", 2, 1),
            "can't join the other processes: .*--processes=1 runs",
        ),
    ],
)
def test_wrong_flags_of_processes(given, message):
    with pytest.raises(UsageError, match=message):
        processes.start(*given)


def test_one_process_agrees_with_itself(tmp_path):
    assert processes.is_main() and processes.agreed(7) == 7
    np.testing.assert_array_equal(processes.shown(1, 0), [[1, 0]])
    processes.by_main(lambda: processes.write(tmp_path / "file.txt", "text"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_an_error_of_process_0_ends_all_processes(monkeypatch):
    def fail():
        raise UsageError("no room")

    with pytest.raises(UsageError, match="no room"):
        processes.by_main(fail)
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr(processes, "shown", lambda value: np.array([[1], [value]]))
    with pytest.raises(UsageError, match="process 0 can't go on, and says why"):
        processes.by_main(fail)


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path, monkeypatch):
    shown = iter([[[0], [0]], [[1], [0]]])
    monkeypatch.setattr(processes, "shown", lambda value: np.array(next(shown)))
    with pytest.raises(UsageError, match="isn't the same folder for all processes: choose an --"):
        outcomes.claim(tmp_path / "out", SMALL)
