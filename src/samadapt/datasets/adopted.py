"""Opening a data set as another one was opened: the same channels by name, the same classes, the same label coding."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt.datasets.csvs import is_csv
from samadapt.datasets.dataset import Entry
from samadapt.datasets.groups import assign_groups, from_csv
from samadapt.datasets.parsed import ParsedLayout
from samadapt.opening import Opening
from samadapt.types import SamAdaptError, SamAdaptWarning

_UNNAMED = ("image",)  # the one channel of a layout that does not name it


def adopt(
    entries: Sequence[Entry], found: ParsedLayout, opening: Opening, path: Path, labelled: bool = True
) -> tuple[tuple[Entry, ...], Opening]:
    """The entries with their classes numbered as in `opening`, and the opening with this data set's channels.

    Args:
        labelled: whether labels are needed; without them, the classes may be others.

    Raises:
        SamAdaptError: the data set declares other classes, or lacks a channel.
    """
    names, channels = _channels(found, opening, path)
    opening = dataclasses.replace(opening, channel_names=names, channels=channels)
    if labelled:
        return _classes(entries, found, opening, path), opening
    bare = (dataclasses.replace(e, labels=(), file_classes=(), target=None) for e in entries)
    return tuple(bare), opening


def _channels(
    found: ParsedLayout, opening: Opening, path: Path
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Match the channels by name, because their order may differ; by number where the names differ."""
    theirs, ours = found.channel_names, opening.channel_names
    if theirs == ours:
        return ours, opening.channels
    used = opening.channels if opening.channels is not None else tuple(range(len(ours)))
    wanted = [ours[channel] for channel in used]
    if set(wanted) <= set(theirs):
        return theirs, tuple(theirs.index(name) for name in wanted)
    if len(theirs) != len(ours):
        if {len(theirs), len(used)} == {1, 3} and opening.depth is not None:
            return ours, opening.channels  # grey and colours: each file is looked at when it is read
        raise SamAdaptError(
            f"{path} has the channels {', '.join(theirs)}; expected {', '.join(wanted)}, as the data set that was "
            "trained on: name or convert them alike"
        )
    if _UNNAMED in (theirs, ours):
        return theirs, opening.channels
    warnings.warn(
        f"the channels of {path} are called {', '.join(theirs)}, those that were trained on {', '.join(ours)}; they are "
        "taken in this order",
        SamAdaptWarning,
        stacklevel=2,
    )
    return theirs, opening.channels


def _classes(
    entries: Sequence[Entry], found: ParsedLayout, opening: Opening, path: Path
) -> tuple[Entry, ...]:
    expected = opening.stored_classes or opening.classes
    if found.classes == expected or not found.classes_declared:
        return tuple(entries)
    if found.classes_once_numbered and expected == tuple(map(str, range(len(found.classes)))):
        return tuple(entries)  # the run is from before they had names
    unknown = [name for name in found.classes if name not in expected]
    if opening.task == "classification" and not opening.multilabel and not found.multilabel and not unknown:
        # A part of the classes, perhaps in another order.
        number = [expected.index(name) for name in found.classes]
        return tuple(
            e if e.target is None else dataclasses.replace(e, target=number[e.target])  # type: ignore[index]
            for e in entries
        )
    raise SamAdaptError(
        f"{path} has the classes {', '.join(found.classes)}; expected {', '.join(expected)}, as the data set that was "
        "trained on: give data of these classes, or a folder of images alone to predict"
    )


def group_like(
    found: ParsedLayout, root: Path, group: str | None, recorded: Mapping[str, str]
) -> tuple[tuple[Entry, ...], str]:
    """The entries with their patients by the rule that was asked for, or by what was recorded where it cannot be applied.

    Args:
        group: as `assign_groups` takes it.
        recorded: case -> patient of the data set that was trained on.
    """
    try:
        return assign_groups(found, root, group)
    except SamAdaptError as error:  # its table is gone, or does not know these cases
        why = str(error)
        entries, rule = assign_groups(found, root, None)
    known = [e.id for e in entries if e.id in recorded]
    warnings.warn(
        f"{why}. Of {len(entries)} cases, {len(known)} have the patient that was recorded with the run, the others are "
        f"assigned by {rule}",
        SamAdaptWarning,
        stacklevel=2,
    )
    return tuple(dataclasses.replace(e, group=recorded.get(e.id, e.group)) for e in entries), rule


def patients_of(
    entries: Sequence[Entry], root: Path, opening: Opening, recorded: Mapping[str, str]
) -> dict[str, str]:
    """Case -> patient for scans that are not a data set, by the same rule as `group_like`."""
    # Columns know other cases; a table may know some of these.
    group = opening.group or ""
    pattern = group if "(" in group and not is_csv(group) else None
    grouped, _ = group_like(ParsedLayout(entries, ()), root, pattern, recorded)
    if pattern is not None:
        return {e.id: e.group or e.id for e in grouped}
    told = from_csv(Path(group), entries) if is_csv(group) and Path(group).is_file() else {}
    return {e.id: told.get(e.id) or recorded.get(e.id, e.group or e.id) for e in grouped}
