"""One file <-> arrays and geometry. The only room that knows file formats, axis orders and affines.

A volume is turned to lie as the files that a model was trained on (`Plane`): `D` is the slicing axis, `H` and `W` are
the other two. `Case.axes` and `Case.flips` remember how the file stores it, so that an answer goes back to the voxels
that it came from; nothing is resampled. A picture is a volume of one slice.
"""

from samadapt.io.arrays import NpzArrays, open_npz
from samadapt.io.cases import (
    label_values,
    make_case,
    read_case,
    read_geometry,
    read_label,
    read_truth,
    to_file_axes,
    with_label,
    write_label,
    write_probabilities,
)
from samadapt.io.listing import Listing, find_files, find_folders, in_words, list_files, not_used
from samadapt.io.nifti import VOLUME_SUFFIXES, Geometry, orientation, write_volume
from samadapt.io.pictures import PICTURE_SUFFIXES, write_photo
from samadapt.io.planes import Plane, common_plane
from samadapt.io.scans import (
    IMAGE_SUFFIXES,
    case_name,
    each_file,
    group_channels,
    has_channel_number,
    suffix_of,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "VOLUME_SUFFIXES",
    "Geometry",
    "Listing",
    "NpzArrays",
    "Plane",
    "case_name",
    "common_plane",
    "each_file",
    "find_files",
    "find_folders",
    "group_channels",
    "has_channel_number",
    "in_words",
    "label_values",
    "list_files",
    "make_case",
    "not_used",
    "open_npz",
    "orientation",
    "read_case",
    "read_geometry",
    "read_label",
    "read_truth",
    "suffix_of",
    "to_file_axes",
    "with_label",
    "write_label",
    "write_photo",
    "write_probabilities",
    "write_volume",
]
