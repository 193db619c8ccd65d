"""Bundles: the manifest, its settings, engine files and the demonstration clip."""
