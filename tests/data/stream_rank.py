"""One rank of a run that only reads: started by test_loader_ranks.py, killed there.

python stream_rank.py FOLDER SHARDS WORKERS START EPOCHS, with torchrun's variables in the environment. Step by step the
ranks put their parts of the global batch together over gloo; rank 0 writes a line (position, epoch, hash of pixels,
labels and ids in the order of the global batch) and then the loader's state, each whole or not at all.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from a2mim.data import TrainLoader, open_dataset


def gathered(part: torch.Tensor, world: int) -> torch.Tensor:
    """(B / world, …) of every rank -> (B, …), where row i came from rank i % world."""
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part)
    return torch.stack(parts, dim=1).flatten(0, 1)


def main(folder: Path, shards: str, workers: int, start: str, epochs: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder / os.environ['MEETING']}", rank=rank, world_size=world)
    loader = TrainLoader(
        open_dataset(shards), 16, 8, seed=3, rank=rank, world_size=world, num_workers=workers, start_method=start
    )
    saved = folder / "state.json"
    if saved.exists():
        loader.load_state_dict(json.loads(saved.read_text()))
    while loader.epoch < epochs:
        for batch in loader:
            whole = [gathered(batch[name].contiguous(), world) for name in ("images", "labels", "ids")]
            if rank == 0:
                digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in whole)).hexdigest()
                with open(folder / "log", "a") as log:
                    log.write(f"{loader.position - 1} {whole[2].tolist()} {digest}\n")
                part = saved.with_suffix(".part")
                part.write_text(json.dumps(loader.state_dict()))
                os.replace(part, saved)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
