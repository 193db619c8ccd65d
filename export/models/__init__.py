"""Whole networks in plain torch."""
