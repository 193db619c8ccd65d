"""Torch modules shared by the networks; parameter names follow the published checkpoints."""
