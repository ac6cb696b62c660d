"""Model files copied as they are: `copy_file`, and `unpack` for the file in a packed one."""

from __future__ import annotations

from pathlib import Path

from onnxslim.errors import ModelError, UsageError
from onnxslim.io import files
from onnxslim.io.model import PROTOBUF_LIMIT, Model, Origin
from onnxslim.io.staging import map_file, stage_file, writing
from onnxslim.packing import is_packed
from onnxslim.packing.container import read_header, restore


def copy_file(origin: Origin, target: Path) -> None:
    """Write the input file unchanged to `target`, external data included, all or nothing.

    Of a packed file, the model file in it is written. Where other data lie already under the names
    of the external data, the weights go to a data file of the target's name.

    Raises:
        UsageError: the target cannot be written.
    """
    if origin.path is None:
        raise UsageError("A model given in memory has no file to copy.")
    if origin.packed_bytes is not None:
        unpack(origin.path, target)
        return
    base = origin.path.resolve().parent
    data: dict[Path, Path] = {}  # by their paths from the model
    if target.resolve().parent != base:
        data = {item.resolve().relative_to(base): item for item in origin.external}
    taken = {name: target.parent / name for name in data if (target.parent / name).exists()}
    if any(not files.same_content(data[name], place) for name, place in taken.items()):
        Model.load(origin.path).save(target, external=True)
        return
    with stage_file(target, origin.path, origin.external) as staged:
        with writing(target):
            for name, item in data.items():
                place = staged.file.parent / name
                files.make_folders(place.parent)
                files.write_file(place, [map_file(item)])
        staged.write([map_file(origin.path)])
        staged.commit()


def unpacked_sha256(source: Path) -> str | None:
    """The sha256 in hex of the model in the packed file `source`; None: `unpack` refuses the file.

    Raises:
        UsageError: the file cannot be read.
    """
    file = map_file(source)
    try:
        return read_header(file)[0].sha256.hex() if is_packed(file) else None
    except ModelError:
        return None


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
        staged.write([content])
        staged.commit()
