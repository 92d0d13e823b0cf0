"""What is said and written while a run trains: progress, evaluations, problems."""

import json
import time
from pathlib import Path

from experiments.tasks import Metric

_SECONDS_BETWEEN_REPORTS = 10.0


class Log:
    """The evaluations of a run, as rows in memory and lines of a file."""

    def __init__(self, path: Path, metric: Metric):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.metric = path, metric
        self.rows = rows_of(path)

    def of_phase(self, number: int, name: str) -> "PhaseLog":
        """The part of the log that phase `number` writes."""
        return PhaseLog(self, number, name)

    def keep(self, rows: list[dict]) -> None:
        """Replaces all rows, at one stroke."""
        self.rows = rows
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)

    def append(self, row: dict) -> None:
        """Adds a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def problems(self) -> list[str]:
        """What the links of all phases have noticed, each once."""
        found = [f"{row['phase']}: {text}" for row in self.rows for text in row["problems"]]
        return [*dict.fromkeys(found)]


def rows_of(path: Path) -> list[dict]:
    """The whole lines of a log file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


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
        return step

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

    def evaluation(self, step, epoch, loss, value, sparsity, problems: list[str]) -> None:
        """Logs and prints one evaluation, and problems that are new."""
        metric, known, value = self.log.metric, self.log.problems(), float(value)
        row = {
            "number": self.number,
            "phase": self.name,
            "step": step,
            "epoch": epoch,
            "loss": float(loss),
            metric.name: value,
            "sparsity": float(sparsity),
            "problems": problems,
            "seconds": time.monotonic() - self.evaluated,
        }
        self.evaluated = time.monotonic()
        self.log.append(row)
        self._say(
            f"epoch {epoch:.1f}, loss {row['loss']:.4f}, "
            f"test {metric.name} {metric.text(value)}, sparsity {row['sparsity']:.2%}"
        )
        for problem in problems:
            if f"{self.name}: {problem}" not in known:
                self._say(f"problem: {problem}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)
