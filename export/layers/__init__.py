"""Torch modules that networks share. Parameter names follow the published checkpoints."""
