"""Comparison of graphs, engines and the runtime with plain torch or with ONNX Runtime."""
