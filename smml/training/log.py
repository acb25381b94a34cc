"""The CSV log of a run: a row a step, whole rows only, in step with the checkpoint after a resume."""

import csv
import io
import os
from pathlib import Path

from smml.errors import InputError
from smml.files import write_text


class Board:
    """The same rows for TensorBoard, in the folder ``tensorboard`` of the run.

    Raises:
        InputError: the package ``tensorboard`` is not installed.
    """

    def __init__(self, output: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"tensorboard: the package is not installed ({error}); run pip install 'smml[tensorboard]', or leave "
                "the option out: log.csv has the same numbers"
            ) from error
        self._writer = SummaryWriter(output / "tensorboard")

    def write(self, row: dict[str, float | int], group: str) -> None:
        """Add every number of a row as "group/column" at the row's step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class TrainingLog:
    """Append a row per step to ``log.csv``.

    Args:
        path: the file.
        columns: names of the columns; the first is the step.
        resume_at: keep the rows of earlier steps (below this one) and drop the rest, which a killed run wrote after
            its last checkpoint and which the resumed run writes again.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], resume_at: int = 0) -> None:
        self.path, self.columns = path, columns
        kept: list[list[str]] = []
        if resume_at and path.exists():
            with open(path, newline="", encoding="utf-8") as stream:
                rows = list(csv.reader(stream))[1:]
            kept = [row for row in rows if len(row) == len(columns) and int(row[0]) < resume_at]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *kept])
        write_text(path, text.getvalue())
        self._stream = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, row: dict[str, float | int]) -> None:
        """Append one row, by column name."""
        values = [row[name] for name in self.columns]
        text = [str(value) if isinstance(value, int) else f"{value:.6g}" for value in values]
        self._stream.write(",".join(text) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Make sure that what was written survives a power cut."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
