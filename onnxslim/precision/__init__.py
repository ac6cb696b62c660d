"""float16: which operands and values may take it, where the borders are, and how they are made.

types    what ONNX's schemas let be float16
values   what constants and calibration samples let be float16
placing  borders between float16 and float32, by least memory traffic
write    float16 written into a graph
store    weights of float32 operators stored as float16
"""
