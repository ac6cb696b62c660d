"""Quantize with NNCF: `quantize_nncf.py INPUT OUTPUT SAMPLES.npz`; post-training, its defaults.

Opsets below 13 are raised first: it quantizes nothing per channel below.
"""

import sys

import nncf
import onnx
from samples import load_raised, read_samples


def main() -> None:
    """Write OUTPUT."""
    source, target, samples = sys.argv[1:]
    rows = read_samples(samples)
    data = nncf.Dataset(rows)
    onnx.save(nncf.quantize(load_raised(source), data, subset_size=len(rows)), target)


main()
