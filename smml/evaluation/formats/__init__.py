"""Result files of other tools, read as :class:`smml.evaluation.Scores`; a file tells which tool wrote it."""

from smml.evaluation.formats.named import read_named_results
from smml.evaluation.formats.read import read_result

__all__ = ["read_named_results", "read_result"]
