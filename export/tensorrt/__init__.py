"""TensorRT engines: build and inspect."""
