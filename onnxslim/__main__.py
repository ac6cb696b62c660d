"""`python -m onnxslim` is the command `onnxslim`."""

from onnxslim.cli import main

main()
