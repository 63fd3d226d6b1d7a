"""Weights from files: found, recognised, converted and loaded, with a report. They are read as data."""
