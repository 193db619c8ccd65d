"""Fuzz targets, the properties that every input must keep, and the coverage-guided campaign."""
