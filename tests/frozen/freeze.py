"""What the project computes today, in numbers: measured here, recorded in records.json, held by tests/test_frozen.py.

Renew a record only when a change of behaviour is meant, and say why; without names all are renewed:

    python tests/frozen/freeze.py --reason "the warm-up begins at step 1" pretrain/a2mim_xcit batches/photos

A record holds the settings, a hash of every bit, and a few numbers, each with how far it may be off: another kind of
CPU or another torch rounds in another way. The file has a fingerprint of the machine that wrote it. Where it is found
again, the hash must be equal. The numbers must be near everywhere.

`old/` holds two runs, stopped after some steps, and their exports. They were written before the records that open them
and stay as they are. `python tests/frozen/freeze.py --make-old` writes them anew, by the code of that day; what is
recorded of them must then be renewed, too.

Only what users call is called here, so that modules may move.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F

import a2mim

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS = HERE / "records.json"
OLD = HERE / "old"
NEAR = 1e-3  # relative, for numbers that rounding moves
_NOT_FROZEN = ("images_per_second", "data_share", "memory_gb", "test_top1", "test_top5", "target_std", "prediction_std")

# Steps, and images a step where they are fewer than the laptop scale has: what a test can pay.
LIGHT, HEAVY, BRIEF = (20, 16), (6, 8), (4, 4)
PRETRAIN = {
    "a2mim_convnext_base": BRIEF,
    "a2mim_convnext_small": BRIEF,
    "a2mim_convnext_tiny": (20, 8),
    "a2mim_crossvit": HEAVY,
    "a2mim_deit_small_in100": BRIEF,
    "a2mim_linglo": LIGHT,
    "a2mim_resnet101": HEAVY,
    "a2mim_resnet152": BRIEF,
    "a2mim_resnet18": (10, 8),
    "a2mim_resnet200": BRIEF,
    "a2mim_resnet50": HEAVY,
    "a2mim_resnet50_128": BRIEF,
    "a2mim_swin_tiny": (4, 8),
    "a2mim_vit_base": BRIEF,
    "a2mim_vit_large": BRIEF,
    "a2mim_vit_small": LIGHT,
    "a2mim_xcit": (20, None),
    "a2mim_xcit_128": BRIEF,
    "a2mim_xcit_wide": LIGHT,
    "a2mim_xvit": LIGHT,
    "data2vec_vit_base": BRIEF,
    "distill_resnet50": BRIEF,
    "distill_xcit_small": BRIEF,
    "fastmim_resnet50": BRIEF,
    "fastmim_xcit_small": BRIEF,
    "localmim_vit_base": BRIEF,
    "mae_vit_base": BRIEF,
    "mae_vit_small": BRIEF,
    "mae_vit_small_128": BRIEF,
    "maskfeat_vit_base": BRIEF,
    "mff_vit_small": BRIEF,
    "simmim_vit_base": LIGHT,
    "spark_convnext_small": BRIEF,
    "spark_resnet50": BRIEF,
}
FINETUNE = {
    "low_shot_finetune": "test_vit",
    "mae_finetune": "test_vit",
    "rsb_a2": "test_resnet",
    "rsb_a3": "test_resnet",
    "simmim_finetune": "test_vit",
    "small_data": "test_resnet",
    "spark_finetune": "test_resnet",
}
STRONG = {
    **{"augment.auto_augment": "rand-m9-mstd0.5-inc1", "augment.erasing": 0.5, "augment.repeats": 2},
    **{"mix.mixup": 0.8, "mix.cutmix": 1.0},
}
PLAIN_RUN = {"judge.every_epochs": None, "log.pictures": 2, "log.rows": 1, "log.every_steps": 5}
OLD_STEPS = 6  # of the runs in old/, and again after they are taken up


# --- measuring


def hash_of(tensors: dict) -> str:
    """Over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def numbers_of(tensors: dict) -> dict:
    """Length, and sum with fixed random signs, of the biases and tokens, which begin at zero, and of the rest."""
    generator = torch.Generator().manual_seed(0)
    parts = {"moved": [], "rest": []}
    whole = 0
    for name in sorted(tensors):
        values = tensors[name].detach().double().flatten()
        signs = torch.randint(0, 2, values.shape, generator=generator).double() * 2 - 1
        if not tensors[name].is_floating_point():
            whole += int(tensors[name].long().sum())
        else:
            moved = name.endswith((".bias", "token", "gamma"))
            parts["moved" if moved else "rest"].append((values.square().sum(), (values * signs).sum()))
    numbers = {"whole numbers": [whole, 0]}
    for part, sums in parts.items():
        if sums:
            squares, signed = (sum(column).item() for column in zip(*sums, strict=True))
            numbers[f"length of {part}"] = near(squares**0.5)
            numbers[f"signed sum of {part}"] = [signed, NEAR * max(1.0, squares**0.5)]
    return numbers


def near(value: float, times: int = 1) -> list:
    """A number that rounding moves, and how far; more where rounding errors have been seen to grow."""
    return [value, times * NEAR * abs(value)]


def flat(state: dict, prefix: str = "") -> dict:
    """{path: tensor} of nested dictionaries; a target that holds a network keeps it in one entry of the state."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif torch.is_tensor(value):
            found[f"{prefix}{key}"] = value
    return found


def weights_of(run: Path) -> tuple[dict, dict]:
    """(weights of the newest checkpoint, of the averaged model too; numbers of them and of the log)."""
    checkpoint = torch.load(max((run / "checkpoints").glob("step_*.pth")), weights_only=True)
    tensors = flat(checkpoint["state_dict"])
    tensors |= {f"averaged.{k}": v for k, v in checkpoint.get("ema_state_dict", {}).items() if torch.is_tensor(v)}
    numbers = {"step": [checkpoint["meta"]["step"], 0]} | numbers_of(tensors)
    for text in (run / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "mean_colour" in line:  # "baseline" in the records; now that is the better of mean and median
            line["baseline"] = line.pop("mean_colour")
            del line["median_colour"]
        for key, value in line.items():
            if isinstance(value, float) and key not in _NOT_FROZEN:
                numbers[f"step {line['step']} {key}"] = near(value, 10 if key == "grad_norm" else 1)
    return tensors, numbers


@contextlib.contextmanager
def stopped_after(steps: int):
    """Training runs inside stop by themselves after so many steps, as SIGTERM stops them: saved, and not judged."""
    original, done = a2mim.MIM.__call__, 0

    def call(self, *args, **kwargs):
        nonlocal done
        outcome = original(self, *args, **kwargs)
        # a training pass; health checks ask for losses without a gradient
        done += kwargs.get("mode", "loss") == "loss" and torch.is_grad_enabled()
        if done == steps:
            done += 1
            signal.raise_signal(signal.SIGTERM)
        return outcome

    a2mim.MIM.__call__ = call
    try:
        yield
    finally:
        if "__call__" in vars(a2mim.MIM):
            del a2mim.MIM.__call__


@contextlib.contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def command(*words) -> None:
    """Runs `a2mim WORDS` in this process."""
    from a2mim.cli import main

    assert main([str(word) for word in words]) == 0, words


# --- training


def pretrain(folder: Path, recipe: str, **overrides) -> dict:
    """A few steps of a recipe's laptop scale on the built-in photographs."""
    steps, batch = PRETRAIN[recipe]
    with stopped_after(steps):
        settings = PLAIN_RUN | ({"global_batch_size": batch} if batch else {}) | {"export": []} | overrides
        a2mim.pretrain(
            ROOT / "configs" / f"{recipe}.py", work_dir=folder / "run", device="cpu", num_workers=0, **settings
        )
    tensors, numbers = weights_of(folder / "run")
    return {"settings": {"steps": steps, **settings}, "hash": hash_of(tensors), "numbers": numbers}


def finetune(folder: Path, recipe: str, **overrides) -> dict:
    """Four or six steps of a recipe's laptop scale: a tiny network of random weights on a few textures."""
    write_folder(folder / "images", {"train": 8, "test": 4})
    settings = {"data.img_size": 32, "global_batch_size": 8, "schedule.epochs": 2, "log.every_steps": 1, "export": []}
    settings |= overrides
    if recipe == "low_shot_finetune":
        settings["labels.subset"] = "6"  # of 8 a class: its 1 % is no batch
    if recipe == "small_data":
        settings["schedule.least_steps"] = None  # it asks for hundreds
    place = {"data": folder / "images", "work_dir": folder / "run", "device": "cpu", "num_workers": 0}
    path = ROOT / "configs" / "finetune" / f"{recipe}.py"
    a2mim.finetune(path, FINETUNE[recipe], laptop=True, **place, **settings)
    tensors, numbers = weights_of(folder / "run")
    (result,) = json.loads((folder / "run" / "results.json").read_text())
    numbers |= judged(result)
    return {"settings": {"source": FINETUNE[recipe], **settings}, "hash": hash_of(tensors), "numbers": numbers}


# --- data


def texture(number: int, kind: int, size=(40, 44)) -> np.ndarray:
    """(H, W, 3) uint8: waves whose direction, and a little their colour, tell the kind; the rest is noise."""
    generator = np.random.default_rng([number, kind])
    rows, columns = np.mgrid[: size[0], : size[1]]
    angle = kind * np.pi / 3 + generator.normal(0, 0.25)
    wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) / 3 + generator.uniform(0, 6))
    pixels = 110 + 25 * wave[..., None] + generator.normal(0, 30, (*size, 3)) + generator.normal(0, 20, 3)
    pixels[..., kind % 3] += 24
    return pixels.clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Not compressed, so that no version of zlib changes the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=0)
    return buffer.getvalue()


def write_folder(root: Path, counts: dict) -> Path:
    """{"train": images a class, "test": …} as root/train/a/00.png and so on, of three classes."""
    for place, (split, count) in enumerate(counts.items()):
        for kind, name in enumerate("abc"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i:02d}.png").write_bytes(png(texture(1000 * place + i, kind)))
    return root


def write_shards(folder: Path) -> list[str]:
    """Three shards of 11, 10 and 9 textures, with labels."""
    paths, number = [], 0
    for shard, count in enumerate((11, 10, 9)):
        paths.append(str(folder / f"shard-{shard}.tar"))
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for _ in range(count):
                members = {"png": png(texture(number, number % 3)), "cls": str(number % 3).encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                number += 1
    return paths


def batches_of(loader, epochs: int, prefix: str) -> tuple[dict, dict]:
    """(every tensor by name; which images came, and the mean of their pixels) of whole epochs."""
    tensors, numbers = {}, {}
    for epoch in range(epochs):
        for place, batch in enumerate(loader):
            name = f"{prefix}, epoch {epoch}, batch {place}"
            tensors |= {f"{name}, {key}": value for key, value in batch.items()}
            numbers[f"{name}, ids"] = [hash_of({"ids": batch["ids"], "labels": batch["labels"]}), 0]
            numbers[f"{name}, mean"] = near(batch["images"].double().mean().item())
    return tensors, numbers


def photos(folder: Path, seed: int = 0) -> dict:
    """Two epochs of the built-in photographs, and the test images in order."""
    from a2mim.data import EvalLoader, TrainLoader

    train, test = a2mim.open_dataset("photos", "train"), a2mim.open_dataset("photos", "test")
    tensors, numbers = batches_of(TrainLoader(train, 32, 1024, seed=seed), 2, "train")
    loader = EvalLoader(test, 32, resize=36, batch_size=256, indices=range(0, 1024, 4))
    more = batches_of(loader, 1, "test")
    return {"settings": {"seed": seed}, "hash": hash_of(tensors | more[0]), "numbers": numbers | more[1]}


def shards(folder: Path, seed: int = 0) -> dict:
    """Two epochs of tar shards, on one process and on the second of two, with crops of either interpolation."""
    from a2mim.data import TrainLoader

    paths = write_shards(folder)
    dataset = a2mim.open_dataset(paths)
    tensors, numbers = {}, {"fingerprint": [str(dataset.fingerprint), 0]}
    forms = {
        "one process": {},
        "second of two": {"rank": 1, "world_size": 2, "interpolation": "bicubic", "scale": (0.08, 1.0)},
    }
    for name, form in forms.items():
        found = batches_of(TrainLoader(dataset, 24, 8, seed=seed, **form), 2, name)
        tensors, numbers = tensors | found[0], numbers | found[1]
    return {"settings": {"seed": seed}, "hash": hash_of(tensors), "numbers": numbers}


# --- evaluation

ACCURACIES = ("top1", "top5", "top1_last", "top1_best", "best_top1", "top1_class_mean")
COUNTS = ("protocol", "protocol_hash", "n_train", "n_test", "n_classes", "n_heads", "pooling", "head", "k", "subset")
VOLATILE = ("data", "test_data", "list", "loading", "loaded", "sources", "encoder", "data_fingerprint")
VOLATILE += ("test_fingerprint", "versions", "seconds", "note")


def plain(value):
    """A result without tensors, paths, versions and remarks."""
    if torch.is_tensor(value):
        return value.int().tolist() if value.dtype == torch.bool else value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items() if key not in VOLATILE}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def hash_of_plain(value) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def judged(result: dict, prefix: str = "") -> dict:
    """What must be equal of a result, and its accuracies, that may be off by one test image."""
    numbers = {f"{prefix}{key}": [result[key], 0] for key in COUNTS if isinstance(result.get(key), str | int)}
    one = 100.001 / result["n_test"]
    found = {key: result[key] for key in ACCURACIES if result.get(key) is not None}
    found |= {f"top1 at k {k}": pair[0] for k, pair in result.get("by_k", {}).items()}
    return numbers | {f"{prefix}{key}": [value, one] for key, value in found.items()}


def synthetic_features() -> tuple:
    """Ten classes that overlap: (features, labels) to train on, (features, labels) to test on."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 24))
    sets = []
    for count in (300, 400):
        labels = np.arange(count) % 10
        features = centres[labels] + 1.3 * generator.normal(size=(count, 24))
        sets += [torch.from_numpy(features).float(), torch.from_numpy(labels)]
    return tuple(sets)


def on_features(folder: Path, seed: int = 0) -> dict:
    """k-NN, three linear probes and the logistic regression, on features that are given."""
    from a2mim.evaluation import knn, linear_probe, logreg

    sets, found = synthetic_features(), {}
    found["knn"] = knn(*sets, k=20, also_k=(1, 5, 100))
    for protocol, epochs in (("linear-cached", 6), ("dino-linear", 6), ("mae-linear", 12)):
        settings = {"epochs": epochs, "batch_size": 64, "base_lrs": (10.0,) if protocol == "mae-linear" else None}
        found[protocol] = linear_probe(*sets, protocol=protocol, seed=seed, **settings)
    found["logreg"] = logreg(*sets, c_values=5, seed=seed)
    numbers = {}
    for name, result in found.items():
        numbers |= judged(result, f"{name}: ")
    return {"settings": {"seed": seed}, "hash": hash_of_plain(found), "numbers": numbers}


def features(folder: Path, seed: int = 0) -> dict:
    """Frozen features of a ViT and of a ResNet, seeded, of textures."""
    import timm

    from a2mim.evaluation import extract_features

    images = torch.from_numpy(np.stack([texture(i, i % 3, (32, 32)) for i in range(12)])).permute(0, 3, 1, 2)
    loader = [{"images": part, "labels": torch.arange(6), "ids": torch.arange(6)} for part in images.split(6)]
    tensors = {}
    for name, options in (("test_vit", {"img_size": 32}), ("test_resnet", {})):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=0, **options)
        for pooling in ("default", "avg"):
            tensors[f"{name} {pooling}"], _ = extract_features(model, loader, pooling)
    numbers = {}
    for name, values in tensors.items():
        numbers |= {f"{name}: {key}": pair for key, pair in numbers_of({name: values}).items()}
    return {"settings": {"seed": seed}, "hash": hash_of(tensors), "numbers": numbers}


FROZEN_PROTOCOLS = ("dino-knn", "linear-cached", "grid-cached", "dino-linear", "dinov2-linear", "mae-linear", "logreg")
FROZEN_PROTOCOLS += ("low-shot",)
SHORT = {
    **{"k": 5, "also_k": [1], "linear-cached.epochs": 3, "grid-cached.epochs": 2, "dino-linear.epochs": 2},
    **{"mae-linear.epochs": 2, "mae-linear.warmup_epochs": 1, "dinov2-linear.epochs": 2},
    **{"dinov2-linear.epoch_length": 4, "dinov2-linear.batch_size": 8, "logreg.c_values": 3},
    **{"low-shot.subsets": ["25%", "3"], "low-shot.tries": 1},
}


def protocols(folder: Path, network: str, seed: int = 0) -> dict:
    """Every protocol that judges a frozen encoder by labelled images, by the command line."""
    root = write_folder(folder / "images", {"train": 16, "test": 16})
    options = [f"{key}={json.dumps(value)}" for key, value in SHORT.items()]
    sets = ("--data", root / "train", "--test-data", root / "test", "--img-size", 32, "--device", "cpu")
    where = ("--seed", seed, "--no-feature-cache", "--out", folder / "out")
    command("evaluate", network, "--protocol", ",".join(FROZEN_PROTOCOLS), *sets, *where, "--set", *options)
    results = json.loads((folder / "out" / "results.json").read_text())
    numbers = {"results": [len(results), 0]}
    for place, result in enumerate(results):
        numbers |= judged(result, f"{place} {result['protocol']}: ")
    return {"settings": {"seed": seed, **SHORT}, "hash": hash_of_plain(results), "numbers": numbers}


def dense(folder: Path, seed: int = 0) -> dict:
    """DAVIS on a video of a square that moves, Copydays on four scenes; its pictures are PNGs, whatever their names."""
    from PIL import Image

    for part in ("JPEGImages", "Annotations"):
        (folder / "davis" / part / "480p" / "ball").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(4):
        labels = np.zeros((64, 128), np.uint8)
        labels[8:40, 8 * i : 40 + 8 * i], labels[32:64, 64 - 6 * i : 96 - 6 * i] = 1, 2
        pixels = np.array([[60, 60, 70], [150, 90, 90], [90, 140, 100]])[labels]
        pixels = (pixels + generator.normal(0, 40, pixels.shape)).clip(0, 255).astype(np.uint8)
        (folder / "davis" / "JPEGImages" / "480p" / "ball" / f"{i:05d}.jpg").write_bytes(png(pixels))
        image = Image.fromarray(labels)
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        image.save(folder / "davis" / "Annotations" / "480p" / "ball" / f"{i:05d}.png")
    for part in ("original", "strong"):
        (folder / "copydays" / part).mkdir(parents=True)
    for i in range(6):
        pixels = generator.integers(0, 256, (6, 6, 3)).repeat(12, 0).repeat(12, 1)
        copied = pixels // 2 + generator.normal(0, 40, pixels.shape)
        (folder / "copydays" / "original" / f"20{i:02d}00.jpg").write_bytes(png(pixels.astype(np.uint8)))
        copied = copied.clip(0, 255).astype(np.uint8)[4:60, 10:70]
        (folder / "copydays" / "strong" / f"20{i:02d}01.jpg").write_bytes(png(copied))
    chosen = {
        "davis": ("short_side=64", "long_side_multiple=32", "radius=3"),
        "copydays": ("img_size=32",),
    }
    found, numbers = [], {}
    for name, options in chosen.items():
        common = ("--data", folder / name, "--device", "cpu", "--seed", seed, "--out", folder / "out" / name)
        command("evaluate", "vit_tiny_patch16_224", "--protocol", name, *common, "--set", *options)
        found += json.loads((folder / "out" / name / "results.json").read_text())
        numbers[f"{name}: top1_last"] = [found[-1]["top1_last"], 0.5]
        numbers[f"{name}: n_test"] = [found[-1]["n_test"], 0]
    return {"settings": {"seed": seed}, "hash": hash_of_plain(found), "numbers": numbers}


# --- what older code has written


def fresh(folder: Path, name: str, **overrides) -> dict:
    """The steps of an old run, run again."""
    with stopped_after(OLD_STEPS):
        settings = {"data": "photos", "laptop": False, "device": "cpu", "num_workers": 0}
        a2mim.pretrain(OLD / f"{name}.py", work_dir=folder / "run", **settings, **PLAIN_RUN, **overrides)
    tensors, numbers = weights_of(folder / "run")
    return {"settings": {"steps": OLD_STEPS, **overrides}, "hash": hash_of(tensors), "numbers": numbers}


def old(folder: Path, name: str) -> dict:
    """The weights of an old run's checkpoint, as they lie there."""
    tensors, numbers = weights_of(OLD / name / "run")
    return {"settings": {"steps": OLD_STEPS}, "hash": hash_of(tensors), "numbers": numbers}


def resumed(folder: Path, name: str, **overrides) -> dict:
    """An old run in another place, taken up for as many steps again."""
    shutil.copytree(OLD / name / "run", folder / "elsewhere")
    with stopped_after(OLD_STEPS):
        settings = {"resume": True, "device": "cpu", "num_workers": 0}
        a2mim.pretrain(OLD / f"{name}.py", work_dir=folder / "elsewhere", **settings, **overrides)
    tensors, numbers = weights_of(folder / "elsewhere")
    return {"settings": {"steps": 2 * OLD_STEPS, **overrides}, "hash": hash_of(tensors), "numbers": numbers}


def exported(folder: Path, name: str) -> dict:
    """The encoder of an old run, exported for timm with BatchNorm calibrated, and proven."""
    from safetensors.torch import load_file

    shutil.copytree(OLD / name / "run", folder / "elsewhere")
    command("export", folder / "elsewhere", "--to", "timm", "--out", folder / "out", "--device", "cpu")
    (path,) = (folder / "out").rglob("model.safetensors")
    tensors = load_file(path)
    return {"settings": {"to": "timm"}, "hash": hash_of(tensors), "numbers": numbers_of(tensors)}


def make_old() -> None:
    """Writes old/: both runs, stopped, and their exports, with no word of this machine."""
    os.chdir(OLD)
    for name in ("vit", "resnet"):
        shutil.rmtree(name, ignore_errors=True)
        with stopped_after(OLD_STEPS):
            settings = {"data": "photos", "laptop": False, "device": "cpu", "num_workers": 0}
            a2mim.pretrain(f"{name}.py", work_dir=f"{name}/run", **settings, **PLAIN_RUN)
        command("export", f"{name}/run", "--to", "timm", "--out", f"{name}/export", "--device", "cpu")
        for part in ("logs", "reconstructions"):
            shutil.rmtree(f"{name}/run/{part}")
        Path(f"{name}/run/.lock").unlink()


# --- all of it

SUBJECTS = {
    **{f"pretrain/{recipe}": (pretrain, {"recipe": recipe}) for recipe in PRETRAIN},
    **{f"finetune/{recipe}": (finetune, {"recipe": recipe}) for recipe in FINETUNE},
    "finetune/mae_finetune, strong": (finetune, {"recipe": "mae_finetune", **STRONG}),
    "batches/photos": (photos, {}),
    "batches/shards": (shards, {}),
    "evaluation/on features": (on_features, {}),
    "evaluation/features": (features, {}),
    "evaluation/vit": (protocols, {"network": "test_vit"}),
    "evaluation/resnet": (protocols, {"network": "test_resnet"}),
    "evaluation/dense": (dense, {}),
    **{f"old/{name}": (old, {"name": name}) for name in ("vit", "resnet")},
    **{f"old/{name}, run again": (fresh, {"name": name}) for name in ("vit", "resnet")},
    **{f"old/{name}, resumed": (resumed, {"name": name}) for name in ("vit", "resnet")},
    "old/resnet, exported": (exported, {"name": "resnet"}),
}


def measure(name: str, folder: Path, **changes) -> dict:
    """{"settings", "hash", "numbers"} of one subject; changes: what is not as recorded."""
    function, arguments = SUBJECTS[name]
    with one_thread():
        return function(folder, **arguments | changes)


def differences(record: dict, found: dict, exactly: bool) -> list[str]:
    """What is not as recorded, in words. exactly: bit for bit; else each number within what it may be off."""
    if exactly:
        return [] if record["hash"] == found["hash"] else [f"the hash was {record['hash']} and is {found['hash']}"]
    said = []
    for key in sorted(record["numbers"].keys() | found["numbers"].keys()):
        (was, allowed), (now, _) = (side["numbers"].get(key, [None, 0]) for side in (record, found))
        words = not all(isinstance(value, int | float) for value in (was, now))
        if was != now if words else not abs(was - now) <= allowed:
            said.append(f"{key} was {was} and is {now}")
    return said


def fingerprint() -> str:
    """Of this machine's arithmetic: a hash of what common operations give, forward and backward, in one thread."""
    with one_thread():
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).requires_grad_()

        outputs = []
        for inside, outside, kernel, groups in ((3, 16, 7, 1), (16, 32, 3, 1), (32, 8, 1, 1), (24, 24, 3, 24)):
            x, weight = draw(4, inside, 18, 18), draw(outside, inside // groups, kernel, kernel)
            outputs.append((F.conv2d(x, weight, stride=2, padding=kernel // 2, groups=groups), x, weight))
        x, weight = draw(8, 17, 192), draw(384, 192)
        outputs += [(F.gelu(x @ weight.T), x, weight), (F.layer_norm(x, (192,)), x, x)]
        q, k = draw(2, 3, 17, 64), draw(2, 3, 17, 64)
        outputs += [(F.scaled_dot_product_attention(q, k, q), q, k), ((q @ k.transpose(-1, -2)).softmax(-1), q, k)]
        x = draw(8, 12, 16, 16)
        outputs.append((F.batch_norm(x, torch.zeros(12), torch.ones(12), training=True), x, x))
        outputs.append((torch.fft.fft2(x).abs().log1p(), x, x))
        tensors = {}
        for place, (output, *inputs) in enumerate(outputs):
            tensors[f"{place}"] = output
            gradients = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)
            tensors |= {f"{place} {i}": gradient for i, gradient in enumerate(gradients)}
    kinds = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
    return hashlib.sha256(f"{kinds} {hash_of(tensors)}".encode()).hexdigest()[:32]


def read_records() -> dict:
    return json.loads(RECORDS.read_text(encoding="utf-8"))


def renew(names: list[str], reason: str) -> None:
    """Measures and writes the records of these names. A new fingerprint needs all of them."""
    content = read_records() if RECORDS.exists() else {"records": {}}
    here = {"fingerprint": fingerprint(), "torch": torch.__version__.partition("+")[0]}
    if content.get("fingerprint", here["fingerprint"]) != here["fingerprint"] and set(names) != set(SUBJECTS):
        raise SystemExit("these records were written by another kind of machine: renew all of them, or none")
    kept = {name: record for name, record in content["records"].items() if name in SUBJECTS}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            kept[name] = {"reason": reason, **measure(name, Path(folder))}
    ordered = {name: kept[name] for name in SUBJECTS if name in kept}
    RECORDS.write_text(json.dumps(here | {"records": ordered}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Renew what tests/test_frozen.py holds the project to.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SUBJECTS)}; none: all")
    parser.add_argument("--reason", help="why the behaviour is another now; kept in the record")
    parser.add_argument("--make-old", action="store_true", help="write the runs and exports in old/ anew, and leave")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(SUBJECTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    if chosen.make_old:
        return make_old()
    if not chosen.reason:
        parser.error("say why with --reason")
    renew(chosen.names or list(SUBJECTS), chosen.reason)


if __name__ == "__main__":
    sys.exit(main())
