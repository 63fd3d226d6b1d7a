"""The processes of a torchrun: how they meet and leave (group.py), and share passes over images (leading.py)."""
