"""A folder or file -> a `Dataset` of cases, its layout detected automatically; splits by patient."""

from samadapt.datasets.adopted import patients_of
from samadapt.datasets.anonymous import NameKey, coded_alike, find_key
from samadapt.datasets.dataset import Dataset, Entry, cases_in_place_of
from samadapt.datasets.inside import demand_inside
from samadapt.datasets.layouts import (
    LAYOUTS,
    default_window,
    find_layout,
    open_dataset,
    open_like,
    told_modality,
)
from samadapt.datasets.masks import find_masks, split_masks
from samadapt.datasets.split import Split, count_folds, unit_of
