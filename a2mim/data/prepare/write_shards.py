"""A folder of images to webdataset tar shards: shuffled once over everything, the images' bytes as they are.

What goes into which shard is decided before anything is written and recorded in manifest.json. A shard gets its name
when it is complete, so a run that was killed goes on with the first shard that is missing.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from a2mim.data import keyed
from a2mim.data.folder import labels_from_paths, list_images
from a2mim.files import write_text

NAME = "shard-{:06d}.tar"
_OVERHEAD = 2048  # bytes of tar headers and padding per sample, at most


def make_shards(
    source_folder: str | os.PathLike,
    out_dir: str | os.PathLike,
    samples_per_shard: int = 1000,
    max_bytes: int = 1 << 30,
    seed: int = 0,
) -> dict:
    """Writes shard-000000.tar, ..., classes.txt when the folder has classes, files.txt and manifest.json.

    Args:
        source_folder: images, nested as they like; first-level folders are classes when every image lies in one.
        out_dir: made if need be; a run with the same arguments continues what it finds there.
        samples_per_shard: at most.
        max_bytes: of a shard, at most, unless one image alone is larger.
        seed: of the shuffle.

    A sample's key is the line of its path in files.txt, counted from 0. Returns {"pattern": what --data takes,
    "images", "shards", "written", "kept" (shards that were there already), "classes"}.
    """
    source, out = Path(source_folder), Path(out_dir)
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {str(source)!r}")
    paths = list_images(source)
    if not paths:
        raise ValueError(f"no images in {str(source)!r} and the folders below")
    labels, class_names = labels_from_paths(paths)
    sizes = [(source / path).stat().st_size for path in paths]
    shards = divide(np.array(sizes), samples_per_shard, max_bytes, seed)
    manifest = {
        "images": len(paths),
        "files": hashlib.blake2b(json.dumps([paths, sizes]).encode(), digest_size=8).hexdigest(),
        "samples_per_shard": samples_per_shard,
        "max_bytes": max_bytes,
        "seed": seed,
        "shards": len(shards),
    }
    begin(out, manifest, paths, class_names)
    missing = [k for k in range(len(shards)) if not (out / NAME.format(k)).exists()]
    kept = len(paths) - sum(len(shards[k]) for k in missing)
    with tqdm(total=len(paths), initial=kept, desc="writing shards", unit="img") as progress:
        for k in missing:
            _write_shard(out, k, [(i, source / paths[i], int(labels[i])) for i in shards[k]], progress)
    numbers = "000000" if len(shards) == 1 else f"{{000000..{len(shards) - 1:06d}}}"
    return {
        "pattern": str(out / f"shard-{numbers}.tar"),
        "images": len(paths),
        "shards": len(shards),
        "written": len(missing),
        "kept": len(shards) - len(missing),
        "classes": len(class_names or []),
    }


def divide(sizes: np.ndarray, samples_per_shard: int, max_bytes: int, seed: int | None) -> list[list[int]]:
    """Ids, shuffled unless seed is None, cut whenever a shard is full."""
    order = np.arange(len(sizes))
    if seed is not None:
        order = np.argsort(keyed.hashes(seed, 0, order, 1, keyed.ORDER)[:, 0], kind="stable")
    shards, room = [], -1
    for i in order.tolist():
        need = int(sizes[i]) + _OVERHEAD
        if need > room or len(shards[-1]) == samples_per_shard:
            shards.append([])
            room = max_bytes
        shards[-1].append(i)
        room -= need
    return shards


def begin(out: Path, manifest: dict, paths: list[str], class_names: list[str] | None) -> None:
    """Records what is about to be written, or checks that it is what an earlier run began."""
    record = out / "manifest.json"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        for field, value in manifest.items():
            if found.get(field) != value:
                raise ValueError(
                    f"{str(out)!r} holds shards made with {field}={found.get(field)!r}, now it is {value!r}; "
                    "write to another folder, or make it what it was"
                )
        return
    if any(out.glob("*.tar")):
        raise ValueError(f"{str(out)!r} holds tar files but no manifest.json; write to an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "files.txt", "".join(f"{path}\n" for path in paths))
    if class_names:
        write_text(out / "classes.txt", "".join(f"{name}\n" for name in class_names))
    write_text(record, json.dumps(manifest, indent=2) + "\n")


def _write_shard(out: Path, number: int, members: list[tuple[int, Path, int]], progress: tqdm) -> None:
    """Closing a ShardWriter runs `post`, also after an exception, when the shard must not get its name."""
    from webdataset import ShardWriter

    pattern = str(out.absolute() / NAME).replace("%", "%%").replace("{:06d}", "%06d") + ".part"
    writer = ShardWriter(
        pattern,
        maxcount=len(members),
        maxsize=float("inf"),
        start_shard=number,
        post=lambda written: os.replace(written, written.removesuffix(".part")),
        verbose=0,
        encoder=False,
        mtime=0,
    )
    try:
        for i, path, label in members:
            sample = {"__key__": f"{i:09d}", path.suffix[1:].lower(): path.read_bytes()}
            if label >= 0:
                sample["cls"] = str(label).encode()
            writer.write(sample)
            progress.update()
    except BaseException:
        writer.post = None
        raise
    finally:
        writer.close()
