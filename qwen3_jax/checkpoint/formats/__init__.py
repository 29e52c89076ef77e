"""Quantised checkpoints: how each form is recognised (`opening`), unpacked, packed and written."""
