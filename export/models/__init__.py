"""Configurations and whole networks in plain torch."""
