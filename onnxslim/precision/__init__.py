"""float16: which operands and values may take it, where the borders are, and how they are made.

operand_types   which operands may be float16, by ONNX's schemas
value_ranges    which values fit float16: constants, and activations on calibration samples
doubts          constants that float16 does not hold well, decided by outputs
placement       the nodes that compute in float16, by least memory traffic
conversion      nodes converted to float16, with a Cast at each border
stored_weights  weights of float32 operators stored as float16

run             one run of convert-fp16: attempts until `max-error` holds
"""
