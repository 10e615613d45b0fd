"""Presets, one short file each."""
