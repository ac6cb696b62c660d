"""Model files copied as they are: `copy_file`, and `unpack` for the file in a packed one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from onnxslim.errors import UsageError
from onnxslim.io.model import PROTOBUF_LIMIT, Model, Origin
from onnxslim.io.staging import (
    cannot_write,
    check_target,
    map_file,
    stage_file,
    write_file,
    writing,
)
from onnxslim.packing import is_packed
from onnxslim.packing.container import restore


def copy_file(origin: Origin, target: Path) -> None:
    """Write the input file unchanged to `target`, external data included, all or nothing.

    Of a packed file, the model file in it is written.

    Raises:
        UsageError: the target cannot be written.
    """
    if origin.path is None:
        raise UsageError("A model given in memory has no file to copy.")
    if origin.packed_bytes is not None:
        unpack(origin.path, target)
        return
    check_target(target, origin.path, origin.external)
    base = origin.path.resolve().parent
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxslim-", dir=target.parent) as folder:
            moves = [(origin.path, target)]
            same_folder = target.resolve().parent == base
            if not same_folder:
                moves = [
                    *((f, target.parent / f.resolve().relative_to(base)) for f in origin.external),
                    *moves,
                ]
            for index, (source, _) in enumerate(moves):
                shutil.copyfile(source, Path(folder) / str(index))
            for index, (_, final) in enumerate(moves):
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(folder) / str(index), final)
    except OSError as error:
        raise UsageError(cannot_write(target, error)) from error


def unpack(source: Path, target: Path) -> None:
    """Write the model in the packed file `source` to `target`, all or nothing.

    The file is the same to the byte as the one that was packed; external data are restored too.

    Raises:
        UsageError: a path is wrong, `source` is not packed, or the target cannot be written.
        ModelError: the file is damaged, or claims more than it may.
    """
    file = map_file(source)
    if not is_packed(file):
        raise UsageError(f"`{source}` is not a packed file; `onnxslim pack` makes one.")
    content, external = restore(file, f"`{source}`")
    if external or len(content) > PROTOBUF_LIMIT:
        Model.load(source).save(target, external=True)
        return
    with stage_file(target, source) as staged:
        with writing(target):
            write_file(staged.file, [content])
        staged.commit()
