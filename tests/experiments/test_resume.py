"""Runs that are stopped, at any moment, go on to the same bits."""

import os
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest

from experiments import checkpoints, processes
from experiments.log import PhaseLog
from tests.experiments.runs import (
    FINE_TUNE,
    ROOT,
    SEARCH,
    SMALL,
    evaluated,
    outcome,
    rows,
    run_phases,
)

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(jax, "device_count", lambda: 1)
        run_phases(folder, SEARCH, FINE_TUNE)
    return folder


def assert_same_run(folder, reference):
    for name in ("0-search", "1-fine-tune"):
        chex.assert_trees_all_equal(outcome(folder, name), outcome(reference, name))
    assert rows(folder, without=["seconds"]) == rows(reference, without=["seconds"])


# in this process --------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device", "no_pictures")
def test_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, monkeypatch, capsys):
    """It stops five times: before and after checkpoints, and when the first phase is through."""
    saved_in = checkpoints.saved_in
    monkeypatch.setattr(
        checkpoints, "saved_in", lambda folder, _, devices: saved_in(folder, 0, devices)
    )
    save, evaluation = checkpoints.Checkpoints.save_if_due, PhaseLog.evaluation
    stops = iter([("save", 1), ("save", 3), ("evaluate", 2), ("save", 1), ("evaluate", 3)])

    class Interrupted(Exception):
        pass

    def interrupting(kind, original):
        def call(self, *args, **kwargs):
            original(self, *args, **kwargs)
            left[kind] = left.get(kind, 0) - 1
            if left[kind] == 0:
                raise Interrupted

        return call

    monkeypatch.setattr(checkpoints.Checkpoints, "save_if_due", interrupting("save", save))
    monkeypatch.setattr(PhaseLog, "evaluation", interrupting("evaluate", evaluation))
    for stop in stops:
        left = dict([stop])
        with pytest.raises(Interrupted):
            run_phases(tmp_path, SEARCH, FINE_TUNE)
    left = {}
    run_phases(tmp_path, SEARCH, FINE_TUNE)
    assert "fine-tune: goes on at step" in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted)


@pytest.fixture
def signals():
    """A process that listens to signals as a command does."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    processes.start(None, 1, None)
    yield
    processes._asked = False
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("one_device", "no_pictures", "signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    tmp_path, uninterrupted, monkeypatch, capsys, number
):
    evaluation = PhaseLog.evaluation

    def interrupted(self, *args, **kwargs):
        evaluation(self, *args, **kwargs)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(PhaseLog, "evaluation", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_phases(tmp_path, SEARCH, FINE_TUNE)
    assert stopped.value.code == processes.STOPPED == 75
    assert "search: stopped at step 2 of 8" in capsys.readouterr().out
    processes._asked = False
    monkeypatch.setattr(PhaseLog, "evaluation", evaluation)
    run_phases(tmp_path, SEARCH, FINE_TUNE)
    assert "search: goes on at step 2" in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted)


# in processes that are killed -------------------------------------------------------------------


# As `python -m experiments.run`, on the first device alone.
COMMAND = """
import jax, runpy
jax.device_count = lambda: 1
runpy.run_module("experiments.run", run_name="__main__")
"""


def start(environment, config, folder):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, config, f"--out={folder}", "--checkpoint_seconds=0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(environment, config, folder):
    process = start(environment, config, folder)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def kill(environment, config, folder, moment):
    """Kills the run at the moment; returns whether it came before the end."""
    process = start(environment, config, folder)
    while process.poll() is None and not moment(folder):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def saving(folder, pattern, count):
    """The moment when `count` more folders with temporary names have been seen."""
    before, seen = set(folder.glob(pattern)), set()

    def now(folder):
        seen.update(set(folder.glob(pattern)) - before)
        return len(seen) >= count

    return now


def test_killed_run_ends_with_the_same_bits(config, tmp_path, uninterrupted, environment):
    folder, path = tmp_path / "out", config(SMALL)
    assert kill(environment, path, folder, evaluated("search", 2))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"number": 0, "pha')
    assert "search: goes on at step" in finish(environment, path, folder)
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
def test_run_killed_in_the_middle_of_saving_ends_with_the_same_bits(
    config, tmp_path, uninterrupted, environment
):
    folder, path = tmp_path / "out", config(SMALL)
    moments = [("checkpoints-0*/*tmp*", count) for count in (1, 3, 2)]
    moments += [("network-0*tmp*", 1), ("checkpoints-1*/*tmp*", 3), ("network-1*tmp*", 1)]
    killed = [kill(environment, path, folder, saving(folder, *moment)) for moment in moments]
    assert killed == [True] * len(moments)
    finish(environment, path, folder)
    assert_same_run(folder, uninterrupted)
