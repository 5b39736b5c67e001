"""Measurements, side by side in one run; `results/` holds the JSON that every quoted figure comes from."""
