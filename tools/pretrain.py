"""Pre-trains an encoder: python tools/pretrain.py configs/a2mim_xcit.py [--data FOLDER_OR_SHARDS]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
