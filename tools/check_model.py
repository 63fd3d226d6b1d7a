"""What is known of a network before it is trained: python tools/check_model.py xcit_nano_12_p16_224"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import main

if __name__ == "__main__":
    sys.exit(main(["check-model", *sys.argv[1:]]))
