"""Protocols by name: python tools/evaluate.py RUN --protocol dino-knn,logreg --data TRAIN --test-data TEST --out DIR"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
