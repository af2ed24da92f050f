"""How files become cases. Training writes it into the run; prediction and evaluation obey it."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.types import Case, SamAdaptError, SamAdaptWarning, Task

_NUMBERED = re.compile(r"_(\d{4})$")  # nnU-Net's channel number at the end of a file's name
_LATER = ("modality", "anonymous")  # fields that earlier versions did not have
_AIR = -900  # Hounsfield units, about
#: What modalities are called besides; the two kinds of radiographs are one.
_MODALITIES = {
    **dict.fromkeys(
        ("MRI", "T1", "T1W", "T1CE", "T1C", "T2", "T2W", "FLAIR", "ADC", "DWI", "CINE-MRI"), "MR"
    ),
    **dict.fromkeys(("CR", "DR"), "DX"),
    "PET": "PT",
    "ULTRASOUND": "US",
}
_WORDS = {"CT", "MR", "PT"}  # that mean nothing else within a longer name
_KNOWN = {"CT", "MR", "PT", "NM", "US", "DX", "MG", "XA", "RF", "OP", "OPT", "SM", "ES", "XC", "GM"}


def plain_modality(name: str) -> str:
    """The name of a modality or of a channel -> CT, MR, ... as DICOM has it; "" for what is none.

    A longer name is one of CT, MR or PET where one of its words says so ("cineMRI", "T2-weighted MRI", "CT_arterial").
    """
    name = name.strip().upper()
    name = _MODALITIES.get(name, name)
    if name in _KNOWN:
        return name
    words = [
        "MR" if word.endswith("MRI") else _MODALITIES.get(word, word)
        for word in re.split(r"[^A-Z0-9]+", name)
    ]
    told = {word for word in words if word in _WORDS}
    return told.pop() if len(told) == 1 else ""


@dataclass(frozen=True)
class Opening:
    """What must stay the same between the files that a model was trained on and those that it is used on."""

    task: Task
    classes: tuple[str, ...]  # the index is the class's number; segmentation begins with "background"
    layout: str = ""  # of the data set; names in `datasets.LAYOUTS`
    multilabel: bool = False
    channel_names: tuple[str, ...] = ("image",)  # of the files
    channels: tuple[int, ...] | None = None  # those that are used, in order; None: all
    depth: str | None = None  # numbers in the pictures, "uint8" for example; None: the data set holds volumes
    window: str = "percentile"
    plane: io.Plane = field(default_factory=io.Plane)  # how volumes are cut and turned
    label_values: Mapping[int, int] = field(default_factory=dict)  # stored value -> class or IGNORED
    #: Whether the classes were chosen of the structures that the labels name, and overlap in this order.
    structures_chosen: bool = False
    stored_classes: tuple[str, ...] = ()  # as the data set calls the classes, where other names were given
    label_column: str | None = None  # of a table of labels
    group: str | None = None  # how patients are told apart (--group); None: by the data set or its names
    group_rule: str = "each case is a patient of its own"  # the same in words
    modality: str = ""  # of the scans, as DICOM has it (CT, MR, US, ...); "": it was not said
    anonymous: str = ""  # which secret names are coded with, and where it is; "": names are as they are

    # ------------------------------------------------ files -> a case

    def read_case(self, paths: Sequence[Path], case_id: str, group: str | None = None) -> Case:
        """A case from its image file, or one file for each channel, as the data set's own are read.

        Raises:
            SamAdaptError: the files are of another kind: other channels, another bit depth under a fixed window, no
                slices of the plane.
        """
        self._demand_depth(paths[0])
        chosen = self._chosen(paths)
        case = io.read_case(paths, case_id=case_id, group=group, plane=self.plane, channels=chosen)
        return self._as_trained(case, paths[0])

    def _used(self) -> tuple[int, ...]:
        return self.channels if self.channels is not None else tuple(range(len(self.channel_names)))

    def _chosen(self, paths: Sequence[Path]) -> Sequence[int] | None:
        """Which channels of these files are to be read; None: all that they have."""
        files, expected, used = len(paths), len(self.channel_names), self._used()
        if files == expected:
            return self.channels
        if files == 1:
            count = io.read_geometry(paths[0]).channels
            picture = io.is_picture(paths[0])
            if count == expected or (count > 1 and not picture):
                return self.channels  # `io.read_case` refuses a fourth axis that nobody named
            if picture and {count, len(used)} == {1, 3} and self.channels is None:
                return None  # grey stored as colours, or the other way round: decided by the pixels
        if files == len(used) and self._numbered_as_used(paths, used):
            names = ", ".join(self.channel_names[c] for c in used)
            warnings.warn(
                f"single files are taken as the channel {names!r} that is used here of the data set's {expected}",
                SamAdaptWarning,
                stacklevel=2,
            )
            return None
        names = ", ".join(self.channel_names)
        if files == 1:
            raise SamAdaptError(
                f"{paths[0]} has {count} channels; expected {expected} ({names}), as the data set that was trained on: "
                "give all of its channel files, or an image that has as many channels"
            )
        raise SamAdaptError(
            f"{paths[0]} to {paths[-1].name} are {files} channels of one case by their names; expected {expected} "
            f"({names}), as the data set that was trained on: if each is a scan of its own, rename them so that they do "
            "not end in _0000, _0001, ..."
        )

    @staticmethod
    def _numbered_as_used(paths: Sequence[Path], used: Sequence[int]) -> bool:
        numbers = [_NUMBERED.search(io.case_name(path)) for path in paths]
        return all(n is None or int(n.group(1)) == channel for n, channel in zip(numbers, used, strict=True))

    def _as_trained(self, case: Case, path: Path) -> Case:
        """The case with as many channels as the model sees; grey pictures and colours are told apart by their pixels."""
        count, expected = case.image.shape[0], len(self._used())
        if count == expected:
            return case
        if count == 3 and expected == 1 and bool((case.image == case.image[:1]).all()):
            return dataclasses.replace(case, image=case.image[:1])  # grey, saved as colours
        if count == 1 and expected == 3 and case.affine is None:
            warnings.warn(
                "grey pictures are used as colours whose three channels are the same, for the data set's are in colour",
                SamAdaptWarning,
                stacklevel=2,
            )
            return dataclasses.replace(case, image=case.image.expand(3, -1, -1, -1))
        names = ", ".join(self.channel_names[c] for c in self._used())
        raise SamAdaptError(
            f"{path} has {count} channels; expected {expected} ({names}), as the data set that was trained on: convert "
            "the image, or choose its channels where the data set is opened (--channels)"
        )

    def _demand_depth(self, path: Path) -> None:
        """A window that is fixed in stored units means something else in pictures of another depth, and in volumes."""
        if self.window == "percentile":
            return
        found = io.depth_of(path)
        if found == self.depth:
            return
        kinds = {None: "a volume", "uint8": "an 8-bit picture", "uint16": "a 16-bit picture"}
        is_, wanted = (kinds.get(kind, f"a picture of {kind}") for kind in (found, self.depth))
        raise SamAdaptError(
            f"{path} is {is_}, and the intensities shown are those of {wanted} (window {self.window!r}): convert this "
            "file, or keep the two kinds in data sets of their own"
        )

    def demand_modality(self, modality: str, what: Path) -> None:
        """Refuse what says of itself that it is of another modality than the data that was trained on.

        Args:
            modality: as a header or a data set says it; "": it does not.
        """
        found = plain_modality(modality)
        if found and not self.modality:
            warnings.warn(
                f"the scans say that they are {found}, and the model does not know on which modality it was trained: if that was "
                "another one, its answers mean nothing; say it at training (--modality)",
                SamAdaptWarning,
                stacklevel=2,
            )
        if found and self.modality and found != self.modality:
            raise SamAdaptError(
                f"{what} is {found}; expected {self.modality}, as the data that was trained on, for intensities mean something "
                f"else in {found}: train a model on {found}, or give --modality {self.modality} to have it read all the same"
            )

    def warn_of_values(self, case: Case) -> None:
        """Say where intensities cannot well be of the modality that was trained on."""
        low = float(case.image.min())
        if self.modality == "CT" and self.window.startswith("ct") and low >= 0:
            what = "has no value below 0, and air is near -1000 in Hounsfield units, which the model was trained on: are its values rescaled"
        elif self.modality == "MR" and low <= _AIR:
            what = f"has values down to {low:g}, as CT in Hounsfield units, and the model was trained on MR: is it CT"
        else:
            return
        warnings.warn(f"case {case.id!r} {what}?", SamAdaptWarning, stacklevel=2)

    @property
    def slices(self) -> str:
        """The orientation of the slices, in words."""
        if self.depth is not None:
            return "pictures are taken as stored, because they store no orientation"
        plane = self.plane
        if plane.orientation is None:
            return "the volumes store no orientation in the body; their slices are taken as stored"
        kind = (
            f"thick slices as acquired, {plane.name} or closest to it"
            if plane.thick
            else f"{plane.name} slices"
        )
        return f"{kind}; every volume is turned to {plane.orientation}, as closely as its axes allow"

    # ------------------------------------------------ on disk

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        content = dataclasses.asdict(self)
        for name in _LATER:
            if not content[name]:
                del content[name]  # as the runs of earlier versions, which can so be resumed
        content["label_values"] = {str(value): label for value, label in self.label_values.items()}
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any], where: Path) -> Opening:
        """The inverse of `to_json`.

        Args:
            where: the file that holds it, for the message.
        """
        try:
            # Earlier versions called it otherwise, or could not choose.
            content = {
                "structures_chosen": content.get("structures", False),
                **dict.fromkeys(_LATER, ""),
                **content,
            }
            known = {f.name: content[f.name] for f in dataclasses.fields(Opening)}
            plane = dict(known["plane"])
            if plane["directions"] is not None:
                plane["directions"] = tuple(tuple(direction) for direction in plane["directions"])
            known["plane"] = io.Plane(**plane)
            known["label_values"] = {int(value): label for value, label in known["label_values"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SamAdaptError(
                f"{where} does not say how its files were read ({error}); it was written by another version of samadapt "
                "or edited: train or predict again"
            ) from error
        lists = ("classes", "channel_names", "channels", "stored_classes")
        known |= {name: tuple(known[name]) for name in lists if known[name] is not None}
        return Opening(**known)
