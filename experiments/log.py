"""What is said and written while a run trains: progress, evaluations, problems."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from experiments import processes
from experiments.tasks import Metric

_SECONDS_BETWEEN_REPORTS = 10.0
_LONG_SECONDS = 5.0


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Says what is being done if it takes more than some seconds, and then how long it took."""
    say = lambda text: print(f"{what} {text}", flush=True)
    timer, start = threading.Timer(_LONG_SECONDS, say, ["..."]), time.monotonic()
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    seconds = time.monotonic() - start
    if seconds > _LONG_SECONDS:
        say(f"took {seconds:.0f} s")


class Log:
    """The evaluations of a run, as rows in memory and lines of a file."""

    def __init__(self, path: Path, metric: Metric):
        self.path, self.metric = path, metric
        self.rows = rows_of(path)

    def of_phase(self, number: int, name: str) -> "PhaseLog":
        """The part of the log that phase `number` writes."""
        return PhaseLog(self, number, name)

    def keep(self, rows: list[dict]) -> None:
        """Replaces all rows, at one stroke."""
        self.rows = rows
        processes.write(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def replace(self, number: int, rows: list[dict]) -> None:
        """Has these rows, and no others, of phase `number`."""
        self.keep([*(row for row in self.rows if row["number"] != number), *rows])

    def append(self, row: dict) -> None:
        """Adds a row."""
        self.rows.append(row)
        if processes.is_main():
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def problems(self) -> list[str]:
        """What the links of all phases have noticed, each once."""
        found = [f"{row['phase']}: {text}" for row in self.rows for text in row["problems"]]
        return [*dict.fromkeys(found)]


def rows_of(path: Path) -> list[dict]:
    """The whole lines of a log file; none if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class PhaseLog:
    """Progress and evaluations of one phase."""

    def __init__(self, log: Log, number: int, name: str):
        self.log, self.number, self.name = log, number, name

    def resume(self, step: int, steps: int) -> int:
        """Forgets rows after `step`, from where training goes on."""
        here = (self.number, step)
        self.log.keep([row for row in self.log.rows if (row["number"], row["step"]) <= here])
        if step:
            self._say(f"goes on at step {step:,} of {steps:,}")
        self.steps = steps
        self.evaluated = self.reported = time.monotonic()
        self.reported_step = step
        self.compiled = False
        return step

    def dispatch(self) -> AbstractContextManager:
        """Around each call of the step, the first of which compiles it."""
        return nullcontext() if self.compiled else self._compiling()

    @contextmanager
    def _compiling(self):
        self.compiled = True
        with announced(f"{self.name}: compiling the step"):
            yield
        self.reported = time.monotonic()  # the rate is that of steps alone

    def report_is_due(self) -> bool:
        """Whether the last report was some time ago."""
        return time.monotonic() - self.reported > _SECONDS_BETWEEN_REPORTS

    def report(self, step: int) -> None:
        """Says how fast steps went since the last report, and how long the rest will take."""
        now = time.monotonic()
        rate = (step - self.reported_step) / (now - self.reported)
        left = (self.steps - step) / rate
        self._say(f"step {step:,} of {self.steps:,}, {rate:.3g} steps/s, {left:,.0f} s left")
        self.reported, self.reported_step = now, step

    def evaluation(
        self, step, epoch, loss, value, sparsity, problems: list[str], dying: dict[str, int]
    ) -> None:
        """Logs and prints one evaluation, and problems that are new.

        `dying` has, of each norm's scale, how many channels are dying; it is empty without norms.
        """
        metric, known, value = self.log.metric, self.log.problems(), float(value)
        row = {
            "number": self.number,
            "phase": self.name,
            "step": step,
            "epoch": epoch,
            "loss": float(loss),
            metric.name: value,
            "sparsity": float(sparsity),
            "dying": sum(dying.values()) if dying else None,
            "dying_by_leaf": {leaf: count for leaf, count in dying.items() if count},
            "problems": problems,
            "seconds": time.monotonic() - self.evaluated,
        }
        self.evaluated = time.monotonic()
        self.log.append(row)
        self._say(
            f"epoch {epoch:.1f}, loss {row['loss']:.4f}, "
            f"test {metric.name} {metric.text(value)}, sparsity {row['sparsity']:.2%}"
            + (f", {row['dying']:,} dying channels" if row["dying"] else "")
        )
        for problem in problems:
            if f"{self.name}: {problem}" not in known:
                self._say(f"problem: {problem}")

    def stopped(self, step: int) -> None:
        """Says that a signal has ended the run, and that nothing is lost."""
        self._say(
            f"stopped at step {step:,} of {self.steps:,}; the same command goes on from there"
        )

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)
