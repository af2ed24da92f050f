"""Files of a data set lie in its folder: what lists, tables and links in it lead to elsewhere is refused unless it is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from samadapt import io
from samadapt.types import SamAdaptError

#: Where tools that keep data sets as links put the files, in the folder of the data set or one above it.
_STORES = (Path(".git/annex/objects"), Path(".git/modules"), Path(".dvc/cache"))


def demand_inside(files: Iterable[Path], root: Path, allowed: bool = False) -> None:
    """Refuse files that lie outside of the data folder, through `..`, an absolute path or a symbolic link.

    The folder itself may be a link, and links into the store of git-annex (datalad), DVC or the Hugging Face hub of the same
    data set are its own files.

    Args:
        allowed: whether the user trusts the data set; nothing is then refused.
    """
    if allowed:
        return
    for path in dict.fromkeys(file for each in files for file in io.files_of(each)):
        folder = _resolved(path.parent)
        real = (folder / path.name).resolve() if path.is_symlink() else folder / path.name
        if not _belongs(real.parent, _resolved(root)):
            lexical = Path(path).absolute().is_relative_to(root.absolute()) and ".." not in path.parts
            how = "is, through a symbolic link," if lexical else "is"
            raise SamAdaptError(
                f"{path} {how} outside of the data folder {root}: it is {real}; expected the files of a data set inside its "
                "folder: copy it there, or give --allow-outside if you know where the data set comes from and want its links "
                "and lists to be followed"
            )


@lru_cache(maxsize=1 << 14)  # of thousands of files of one folder, the folder is resolved once
def _resolved(folder: Path) -> Path:
    return folder.resolve()


@lru_cache(maxsize=1 << 14)
def _belongs(folder: Path, root: Path) -> bool:
    if folder.is_relative_to(root):
        return True
    if any(folder.is_relative_to(place / store) for place in (root, *root.parents) for store in _STORES):
        return True
    # Of a download of the Hugging Face hub, NAME/snapshots/REVISION links to NAME/blobs.
    return any(p.name == "snapshots" and folder.is_relative_to(p.parent / "blobs") for p in root.parents)
