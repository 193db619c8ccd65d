"""Fronts of one scheduler: a web server (extra `serve`) and its client, Triton Inference Server, Ray."""

from .client import Client

__all__ = ["Client"]
