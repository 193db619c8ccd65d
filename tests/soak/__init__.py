"""Soak test: sessions of every kind and expected errors, with memory, files and threads watched."""
