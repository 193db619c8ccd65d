"""Endurance run: sessions of every kind and expected failures, with memory, files and threads watched."""
