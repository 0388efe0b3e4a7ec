# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images, and which of them have labels: the layouts people share data in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssmis.data.cases import Case, DataError

IMAGES = ("images", "imagesTr", "image", "imgs", "scans")
LABELS = ("labels", "labelsTr", "label", "masks", "mask", "segmentations", "annotations")
UNLABELLED = ("imagesUn", "unlabelled", "unlabeled", "images_unlabelled")


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, before they are split.

    Attributes:
        layout: its name, such as "MSD".
        root: the folder, or the table file.
        cases: all of them; one without a label file is unlabelled.
        roles: case -> "train", "val" or "test", where the data set says so.
        label_names: label value -> name, where it says so.
        channel_names: one a channel, such as "MRI" or "CT", where it says so.
        notes: what was left aside, such as labels without an image.
    """

    layout: str
    root: Path
    cases: tuple[Case, ...]
    roles: Mapping[str, str] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty data set, two cases of one name, and names that no list file can hold."""
        if not self.cases:
            raise DataError(f"{self.root}: the layout is {self.layout}, but no image is there")
        first: dict[str, Path] = {}
        for case in self.cases:
            if case.id.strip() != case.id or len(case.id.splitlines()) != 1 or not _is_text(case.id):
                raise DataError(
                    f"{str(case.image)!a}: {case.id!a} is no name for a case; expected a name without line "
                    "breaks, in UTF-8, that neither begins nor ends with a blank: split lists hold one a line"
                )
            if case.id in first:
                raise DataError(f"{case.image}: case {case.id!r} has the name of {first[case.id]}")
            first[case.id] = case.image

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a label file."""
        return tuple(case for case in self.cases if case.labelled)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases without."""
        return tuple(case for case in self.cases if not case.labelled)

    def role(self, case: Case) -> str:
        """What the data set uses the case for; "train" where it says nothing."""
        return self.roles.get(case.id, "train")


def _is_text(name: str) -> bool:
    """Whether it is more than bytes of a file name that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_dataset(root: Path | str) -> Dataset:
    """Find out how the data in a folder (or a CSV / JSON table) is laid out.

    Raises:
        DataError: there is no such folder, no layout fits, or the one that fits is not what it says.
    """
    from ssmis.data import layout_tables, layout_volumes
    from ssmis.data.suffixes import suffix_of

    root = Path(root).expanduser()
    if root.is_file() and suffix_of(root):
        raise DataError(f"{root}: this is one image; expected a folder of them, or a table")
    if root.is_file():
        return layout_tables.table(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder or table")
    finders: Sequence[Callable[[Path], Dataset | None]] = (
        layout_volumes.msd,
        layout_volumes.nnunet,
        layout_tables.h5_lists,
        layout_volumes.bids,
        layout_tables.table_in,
        layout_volumes.plain,
        layout_volumes.beside,
    )
    for find in finders:
        found = find(root)
        if found is not None:
            return found
    holds = sorted(path.name + "/" * path.is_dir() for path in root.iterdir() if not path.name.startswith("."))
    more = " ..." if len(holds) > 8 else ""
    raise DataError(
        f"{root}: no layout fits; it holds {', '.join(holds[:8]) or 'nothing'}{more}. Expected one of: dataset.json "
        "with imagesTr/ and labelsTr/ (MSD, nnU-Net), images/ and labels/, sub-*/ (BIDS), h5 files with .list files "
        "(SSL4MIS), or a table cases.csv with the columns image,label"
    )
