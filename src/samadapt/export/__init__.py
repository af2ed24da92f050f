"""`samadapt export`: a run as files that other programs use, compared with the run on whole cases before they are left."""

from samadapt.export.door import ExportReport, export_run
from samadapt.export.formats import EXPORTS
