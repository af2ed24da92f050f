"""One file <-> arrays and geometry: the only module that knows file formats, axis orders and affines.

A volume is turned to lie as the files that a model was trained on (`Plane`): `D` is the slicing axis, `H` and `W` are
the other two. `Case.axes` and `Case.flips` remember how the file stores it, so that an answer goes back to the voxels
that it came from; nothing is resampled. A picture is a volume of one slice.
"""

from samadapt.io.arrays import NpzArrays, is_npz, open_npz
from samadapt.io.cases import (
    depth_of,
    format_of,
    label_values,
    make_case,
    read_case,
    read_geometry,
    read_label,
    read_truth,
    to_file_axes,
    write_label,
    write_probabilities,
)
from samadapt.io.dicom.codes import Code, Meaning, meaning_of, read_codes
from samadapt.io.dicom.naming import demand_one_folder, forget_headers, scan_names, series_uid
from samadapt.io.dicom.writer import Legend, demand_writer
from samadapt.io.formats import (
    FORMATS,
    STRUCTURE_FORMATS,
    Format,
    StructureFormat,
    files_of,
    find_label,
    is_found_by_content,
    is_lossy,
    is_picture,
    is_whole_image,
    known_suffixes,
    label_file,
    label_format,
    modality_of,
    names_structures,
    patient_of,
    series_of_structures,
    structures_of,
)
from samadapt.io.geometry import Geometry
from samadapt.io.limits import demand_unpacked
from samadapt.io.listing import find_files, find_folders, in_words, list_files, list_scans, not_used
from samadapt.io.nifti import write_volume
from samadapt.io.planes import Plane, common_plane
from samadapt.io.scans import (
    case_name,
    channel_file,
    each_file,
    group_channels,
    has_channel_number,
)
