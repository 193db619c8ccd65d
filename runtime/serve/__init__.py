"""Fronts of one scheduler: a web server (extra `serve`), Triton Inference Server, Ray."""
