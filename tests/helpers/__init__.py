"""Fakes, toy bundles, references and synthetic inputs that several test modules use."""
