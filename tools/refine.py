"""Refines an encoder: python tools/refine.py SOURCE --data TRAIN"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import main

if __name__ == "__main__":
    sys.exit(main(["refine", *sys.argv[1:]]))
