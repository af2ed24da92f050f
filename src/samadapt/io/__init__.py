"""One file <-> arrays and geometry. The only room that knows file formats, axis orders and affines.

A volume is read in its file's own index order [i, j, k], never turned or mirrored: `D` is the slicing axis,
`H` and `W` are the other two in reversed order (usually D=k, H=j, W=i), and `Case.axes` remembers which is
which, so that an answer goes back to the voxels it came from. A picture is a volume of one slice.
"""

from samadapt.io.arrays import NpzArrays, open_npz
from samadapt.io.cases import (
    label_values,
    make_case,
    read_case,
    read_geometry,
    read_label,
    read_truth,
    with_label,
    write_label,
    write_probabilities,
)
from samadapt.io.nifti import VOLUME_SUFFIXES, Geometry, orientation, write_volume
from samadapt.io.pictures import PICTURE_SUFFIXES, write_photo
from samadapt.io.scans import IMAGE_SUFFIXES, case_name, each_file, find_files, group_channels, suffix_of

__all__ = [
    "IMAGE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "VOLUME_SUFFIXES",
    "Geometry",
    "NpzArrays",
    "case_name",
    "each_file",
    "find_files",
    "group_channels",
    "label_values",
    "make_case",
    "open_npz",
    "orientation",
    "read_case",
    "read_geometry",
    "read_label",
    "read_truth",
    "suffix_of",
    "with_label",
    "write_label",
    "write_photo",
    "write_probabilities",
    "write_volume",
]
