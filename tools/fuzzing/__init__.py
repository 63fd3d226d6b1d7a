"""The parts of tools/fuzz.py: damage, the guarded process that reads damaged files, and a subject for each kind."""
