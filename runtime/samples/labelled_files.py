"""Labels of files: the folders that they lie in.

    photos/cat/1.jpg  photos/cat/2.jpg  photos/dog/1.jpg      cat is 0, dog is 1

Folders are numbered in the order of their names, as `torchvision.datasets.ImageFolder` and
`keras.utils.image_dataset_from_directory` do. Where all names are numbers, these are the classes.

Owns: the class number of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxslim.pipeline.data_settings import LABEL
from onnxslim.runtime.samples.user_values import Parts


@dataclass(frozen=True)
class LabelledFiles:
    """Files, the class number of each where they have one, and how that was found."""

    files: Sequence[Path]
    labels: Sequence[int] | None
    remark: str

    @property
    def count(self) -> int:
        """The number of files."""
        return len(self.files)

    def label(self, number: int) -> Parts:
        """The class of file `number` as a part of an item; nothing where files have no classes."""
        return {} if self.labels is None else {LABEL: np.array(self.labels[number])}


def labelled_files(folder: Path, files: Sequence[Path]) -> LabelledFiles:
    """The files below `folder`, with labels where each of them lies in a folder of a class."""
    owners = [path.relative_to(folder).parts[:-1] if path != folder else () for path in files]
    names = sorted({parts[0] for parts in owners if parts})
    if not names or not all(owners):
        return LabelledFiles(files, None, "")
    are_numbers = all(name.isascii() and name.isdigit() for name in names)
    classes = {name: int(name) if are_numbers else number for number, name in enumerate(names)}
    shown = [f"{name} = {number}" for name, number in list(classes.items())[:3]]
    more = ", ..." if len(classes) > 3 else ""
    remark = f"folders are classes: {', '.join(shown)}{more}"
    return LabelledFiles(files, [classes[parts[0]] for parts in owners], remark)
