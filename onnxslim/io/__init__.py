"""Model files in and out.

model     Model: load, save, and stage a file that is checked before it is put in place
files     the seam: all requests to write, map, move or remove a file
staging   files written all or nothing, memory-mapped reading
external_data  values that lie outside the messages of their tensors
content_store  a folder of results, found by what they were computed from
foreign   what a file is that is no ONNX model
marks     whether an existing file may be replaced
copying   a file copied as it is; the file in a packed one
normal_form   the repairs of a file that onnxruntime runs and ONNX forbids
texts     texts of a file that are not UTF-8
proto_bounds  what a file says, held against limits before a graph is made of it
check     the ONNX checker, the signature, the fingerprint of a model
tensor_bounds  sizes of the tensors of a model, held against limits
shapes    shape inference, written onto the tensors of a graph
bounds    refuses models that ask for more than any machine has
"""
