"""One step of a decision model as a function of arrays: in torch, in NumPy and as an ONNX graph."""
