"""Compare the bytes that two revisions write: every pass, on every tiny model and two real ones.

    python tests/same_bytes.py REVISION [--only quantize]

runs the working tree and REVISION on the same files and lists what differs. A change that claims
to move nothing is held to that: exit code 0 means that every output is the same to the byte. Passes
run without clock and without verification, so the answer does not depend on the machine's load;
both sides run in one environment, so it does not depend on versions either. What REVISION gave is
kept in the folder for temporary files, so that only the first run pays for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 96
"""Calibration samples of the real models: enough for halves to be held back."""

VARIANTS = [
    "binarize-weights:bases=2",
    "cluster-weights:bits=2",
    "cluster-weights:bits=3:init=density:per=channel",
    "cluster-weights:bits=3:init=kmeans++:per=group:group=8",
    "cluster-weights:values=5:init=linear:feedback=false",
    "cluster-weights:vector=2:bits=3",
    "cluster-weights:vector=2:stages=2:bits=2",
    "cluster-weights:weighting=none:table=float16",
    "cluster-weights:aim=own:sequential=false",
    "convert-fp16:compute=float16",
    "deep-compression:agreement=0.95",
    "factorize-conv:ratio=0.3",
    "factorize-conv:rank=2:method=channel",
    "factorize-conv:rank=2:method=spatial",
    "factorize-conv:rank=2:method=cp",
    "factorize-conv:rank=2:method=tucker2",
    "factorize-conv:rank=2:method=flattened",
    "factorize-conv:rank=1:method=depthwise",
    "factorize-conv:macs=0.5",
    "factorize-conv:rank-selection=vbmf:goal=bytes",
    "factorize-dense:rank=1",
    "factorize-dense:ratio=0.4:data-aware=false",
    "factorize-dense:bytes=0.6",
    "inject-exits:target=0.7",
    "inject-exits:target=0.7:head=mlp:batch=all",
    "inject-exits:count=1:threshold=0.4:mode=anytime:report-exit=true",
    "prune-blocks:ratio=0.5",
    "prune-blocks:macs=0.7:reconstruct=false",
    "prune-channels:ratio=0.4",
    "prune-channels:ratio=0.4:criterion=l1:reconstruct=false",
    "prune-channels:ratio=0.4:criterion=obs:scope=global",
    "prune-channels:ratio=0.4:criterion=taylor",
    "prune-channels:ratio=0.4:criterion=lasso",
    "prune-channels:ratio=0.4:criterion=thinet",
    "prune-channels:ratio=0.4:criterion=apoz:steps=2",
    "prune-channels:ratio=0.4:criterion=fpgm",
    "prune-channels:macs=0.5:align=4",
    "prune-channels:bytes=0.6",
    "prune-weights:ratio=0.8",
    "prune-weights:criterion=magnitude:scope=global",
    "prune-weights:criterion=obd:steps=2",
    "prune-weights:criterion=wanda",
    "prune-weights:pattern='2:4'",
    "quantize-fixed-point:fl=6",
    "quantize-fixed-point:rounding=stochastic",
    "quantize-int8:placement=all",
    "quantize-int8:placement=all:calibration=percentile:activations=s8",
    "quantize-int8:placement=all:calibration=entropy:equalize=true:smooth=true",
    "quantize-int8:placement=conv-matmul:calibration=mse:rounding=adaround",
    "quantize-int8:placement=all:calibration=minmax:per-channel=false:symmetric=true",
    "quantize-power-of-two:bits=3",
    "quantize-weights:bits=4",
    "quantize-weights:bits=4:block=16:rounding=adaround",
    "quantize-weights:form=dequantize:symmetric=false",
    "quantize-weights:form=folded:rounding=feedback",
    "quantize-weights:bits=4:form=matmul-nbits",
    "ternarize-weights:per=tensor",
    "ternarize-weights:symmetric=false",
    "simplify,prune-channels:ratio=0.3,prune-weights:ratio=0.5,cluster-weights",
    "simplify,compress-weights:agreement=0.9",
    "simplify,quantize-int8:placement=all",
]
"""Pipelines that reach the options of the lossy passes; every pass runs as it is besides."""

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


def main(arguments: list[str]) -> int:
    """Compare REVISION with the working tree; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("revision", help="commit to compare with")
    parser.add_argument("--only", default="", help="run pipelines that contain this text alone")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as folder:
        work = Path(folder)
        models = work / "models"
        models.mkdir()
        write_models(models)
        cache = cache_of(options.revision, models)
        if not cache.is_file():
            check_out(options.revision, work / "tree")
        runs = [start(ROOT, work / "new", models, options.only)]
        if not cache.is_file():
            runs.append(start(work / "tree", work / "old", models, options.only))
        new = finish(runs[0], work / "new")
        if cache.is_file():
            old = json.loads(cache.read_text("utf-8"))
        else:
            old = finish(runs[1], work / "old")
            if not options.only:
                cache.write_text(json.dumps(old), "utf-8")
    if options.only:
        old = {key: value for key, value in old.items() if options.only in key.split(" | ")[1]}
    return report(old, new)


def cache_of(revision: str, models: Path) -> Path:
    """Where the digests of a revision on these models are kept, in this environment."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", f"{revision}^{{commit}}"],
        check=True,
        capture_output=True,
    )
    digest = hashlib.sha256(commit.stdout + Path(__file__).read_bytes())
    for name in ("numpy", "onnx", "onnxruntime", "scipy"):
        digest.update(version(name).encode())
    for path in sorted(models.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return Path(tempfile.gettempdir()) / f"onnxslim-same-bytes-{digest.hexdigest()[:16]}.json"


def report(old: dict[str, str], new: dict[str, str]) -> int:
    """Print what differs, and how much was compared."""
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    for key in different:
        print(f"{key}: {old.get(key)} -> {new.get(key)}")
    written = sum(1 for value in new.values() if not value.startswith("!"))
    verdict = f"{len(different)} differ" if different else "all are the same to the byte"
    print(f"{len(new)} outputs ({written} files, the rest errors compared by class): {verdict}")
    return 1 if different else 0


def check_out(revision: str, target: Path) -> None:
    """Put the files of `revision` into the folder `target`."""
    target.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(target)], check=True, input=archive.stdout)


def make_site(tree: Path, site: Path) -> None:
    """Copy the three source folders of `tree` so that `import onnxslim` finds them in `site`."""
    shutil.copytree(tree / "onnxslim", site / "onnxslim")
    for name in ("passes", "runtime"):
        shutil.copytree(tree / name, site / "onnxslim" / name)


def start(tree: Path, site: Path, models: Path, only: str) -> subprocess.Popen[bytes]:
    """Start a worker on the sources in `tree`, on one thread; its files lie in `site`."""
    make_site(tree, site)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
    command = [sys.executable, "-W", "ignore", __file__, "--worker", str(models), str(site), only]
    return subprocess.Popen(command, env=environment)


def finish(run: subprocess.Popen[bytes], site: Path) -> dict[str, str]:
    """Wait for a worker, and read what it found."""
    if run.wait():
        raise SystemExit(f"The worker on {site} failed with exit code {run.returncode}.")
    found: dict[str, str] = json.loads((site / "digests.json").read_text("utf-8"))
    return found


# ----------------------------------------------------------------- models


def write_models(folder: Path) -> None:
    """The tiny models, LeNet-5 and ShuffleNet as files, each with samples beside it."""
    import numpy as np

    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    sys.path.append(str(ROOT))  # for benchmarks; last, so that onnxslim is the one PYTHONPATH names
    import onnx
    from exit_nets import classifier
    from layer_nets import dense_net, residual_net
    from recurrent_nets import recurrent_net
    from tiny_models import TINY

    from benchmarks.models import light_graphs

    nets = {f"tiny {name}": make() for name, make in TINY.items()}
    nets["dense"] = dense_net(12, 16, 8)
    nets["residual"] = residual_net().to_proto()
    nets["classifier"] = classifier()
    nets["lstm"] = recurrent_net()
    for name, net in nets.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(net.SerializeToString(deterministic=True))
        write_samples(path, 400 if name == "classifier" else 12)
    shuffle = light_graphs.build("light_shufflenet.onnx", opset=17, head_gain=1.0)
    onnx.save(shuffle, folder / "shufflenet.onnx")
    write_samples(folder / "shufflenet.onnx", 6)
    assets = ROOT / "onnxslim" / "assets"
    (folder / "lenet5.onnx").write_bytes((assets / "lenet5.onnx").read_bytes())
    with np.load(assets / "mnist_calib.npz") as arrays:
        np.savez(folder / "lenet5.npz", **{name: arrays[name][:SAMPLES] for name in arrays.files})


def write_samples(model: Path, count: int) -> None:
    """Seeded samples for a model of open or fixed sizes; none where an input is no float tensor."""
    import numpy as np
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    arrays = {}
    for item in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs():
        if item.type not in FLOATS or not item.shape:
            return
        sizes = [size if isinstance(size, int) else 2 for size in item.shape]
        one = sizes[1:] if not isinstance(item.shape[0], int) or item.shape[0] == 1 else sizes
        arrays[item.name] = rng.normal(size=(count, *one)).astype(np.float32)
    np.savez(model.with_suffix(".npz"), **arrays)


# ----------------------------------------------------------------- the worker


def work(models: Path, site: Path, only: str) -> None:
    """Run every pipeline on every model; write a digest of each output to `digests.json`."""
    found: dict[str, str] = {}
    for model in sorted(models.glob("*.onnx")):
        for spec in specs():
            if only not in spec:
                continue
            if spec in VARIANTS and model.stem not in VARIED:
                continue
            if model.stem == "shufflenet" and spec not in FOR_LARGE:
                continue
            for key, value in outputs(model, spec, site):
                found[f"{model.stem} | {spec} | {key}"] = value
    (site / "digests.json").write_text(json.dumps(found), "utf-8")


VARIED = frozenset(
    ("tiny conv net", "tiny branches", "dense", "residual", "classifier", "lstm", "lenet5")
)
"""Models that the variants run on; every pass as it is runs on all."""

FOR_LARGE = frozenset(
    (
        "simplify",
        "fuse-affine",
        "prune-channels:ratio=0.4",
        "quantize-int8:placement=all",
        "quantize-weights",
        "cluster-weights",
        "convert-fp16",
        "factorize-conv:ratio=0.3",
        "prune-blocks:ratio=0.5",
    )
)
"""What runs on ShuffleNet too, where the whole list would take an hour."""


def specs() -> list[str]:
    """Every registered pass as it is, and the variants."""
    from onnxslim.passes import PASSES

    return [*PASSES, *VARIANTS]


def outputs(model: Path, spec: str, site: Path) -> Iterator[tuple[str, str]]:
    """What a pipeline writes, without and with samples: a digest, or `!` and an error's class."""
    import onnxslim

    samples = model.with_suffix(".npz")
    for key, calibration in (("no samples", None), ("samples", samples)):
        if calibration is not None and not calibration.is_file():
            continue
        if calibration is None and model.stem == "lenet5" and "macs" in spec:
            continue
        target = site / "out.onnx"
        target.unlink(missing_ok=True)
        try:
            onnxslim.compress(
                model,
                target,
                passes=spec,
                calibration=calibration,
                verify=False,
                measure=False,
                force=True,
                floors=None,
                threads=1,
                reproducers=site / "repro",
            )
        except onnxslim.OnnxslimError as error:
            yield key, f"!{type(error).__name__}"
            continue
        yield key, hashlib.sha256(target.read_bytes()).hexdigest()[:16]
        if calibration is not None or spec == "simplify":
            yield f"{key}, packed", packed(target, site)


def packed(source: Path, site: Path) -> str:
    """Digest of the packed file of a model file."""
    from onnxslim import cli

    target = site / "model.onnxz"
    code = cli.run(["pack", str(source), str(target), "--quiet"])
    if code:
        return f"!{code}"
    digest = hashlib.sha256(target.read_bytes()).hexdigest()[:16]
    target.unlink()
    return digest


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main(sys.argv[1:]))
