"""What may be float16: which operands, which values, where the borders are, and how they are made.

`types` asks ONNX's schemas, `values` looks at constants and calibration samples, `placing` chooses
by least memory traffic, `write` converts, `store` keeps weights of float32 operators as float16.
"""
