"""Measuring models: budget curves."""
