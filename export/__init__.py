"""Turns checkpoints into bundles. Needs torch; `runtime/` never imports it."""
