"""Everything of onnxslim that touches onnxruntime or data."""
