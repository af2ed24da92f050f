"""The report of a study: from its scores alone, without torch, in seconds."""

from samadapt.report.page import write_report
from samadapt.report.reading import StudyResults, read_study
from samadapt.report.terminal import results_rows, results_table
