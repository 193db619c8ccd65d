"""A small SAMWISE trained on a procedural world: the world, the network's sizes, training and evaluation."""
