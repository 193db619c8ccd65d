"""SAMWISE: text-driven video segmentation."""
