"""Other engines than onnxruntime, where they are installed: a model file runs in one of them.

opened    what a model that is open in an engine can do
openvino  OpenVINO, from PyPI
tract     tract, from PyPI
web       onnxruntime-web, from npm, in node
opening   an engine by its name
agreement  whether a file computes the same there
"""
