"""A folder or file -> a `Dataset` of cases, its layout told by its content; splits by patient."""

from samadapt.datasets.dataset import Dataset, Entry
from samadapt.datasets.layouts import LAYOUTS, open_dataset
from samadapt.datasets.split import Split, unit_of

__all__ = ["LAYOUTS", "Dataset", "Entry", "Split", "open_dataset", "unit_of"]
