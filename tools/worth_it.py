"""Does pre-training pay on your images? python tools/worth_it.py DATA --minutes 30 --out DIR"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import main

if __name__ == "__main__":
    sys.exit(main(["worth-it", *sys.argv[1:]]))
