"""The report of a study: from its scores alone, without torch, in seconds."""

from samadapt.report.page import write_report
from samadapt.report.reading import StudyResults, read_study

__all__ = ["StudyResults", "read_study", "write_report"]
