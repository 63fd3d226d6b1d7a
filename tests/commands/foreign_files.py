"""Makes files that a stranger might send, and drives every command over them in this one process.

python foreign_files.py SEED, in an empty folder. Each payload would make the file `mark`. Prints a line of JSON for
each command: what it was, its exit status, what it said, and what it did that no reader of data does.
"""

import contextlib
import io
import json
import os
import pickle
import random
import shlex
import shutil
import sys
import tarfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from a2mim.checkpoints import FORMAT
from a2mim.cli import build_parser, main
from a2mim.export.receipt import hash_files

MARK = "mark"
TRAP = f"from pathlib import Path\nPath({MARK!r}).touch()\nclass Net: pass\nclass Loss: pass\n"
CODE = f"__import__('os').system('touch {MARK}')"
TEXTS = [
    *(CODE, f"$(touch {MARK})", f"`touch {MARK}`", f"; touch {MARK} #", f"pipe:touch {MARK}", f"a\n{CODE}\n"),
    *("{{ cycler.__init__.__globals__.os.system('touch mark') }}", f"!!python/object/apply:os.system ['touch {MARK}']"),
    *("\x1b[2J\rerror: all is well", "\u202egpj.x", "<script>x</script>", "](javascript:x)", '"""\n' + CODE + '\n"""'),
]
NAMES = [
    *("trap.Net", "trap", "os.system", "builtins.exec", "hf-hub:somebody/something", "local-dir:.", "trap:Net"),
    *("http://127.0.0.1:9/x", "resnet18:pretrained", "mlflow://models/trap", "models:/trap/1", "runs:/trap/model"),
]
PARTS = [
    *({"type": "trap.Net"}, {"type": "os.system", "command": f"touch {MARK}"}, {"_target_": "trap.Net"}),
    *({"__reduce__": ["os.system", f"touch {MARK}"]}, ["trap.Net"], {"py/object": "trap.Net"}),
]
ARGUMENTS = [
    *({"act_layer": part} for part in PARTS),
    *({key: "trap.Net"} for key in ("norm_layer", "block", "checkpoint_path", "cache_dir")),
    *({"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"}}, {"pretrained_cfg": "trap"}, {CODE: 1}),
]
WEIGHTS = "vit_tiny_patch16_224"
SMALL = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": [32, 32]}
FORBIDDEN = (
    "socket.",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "urllib.Request",
    "webbrowser.open",
)

RECIPE = f"""
model = dict(encoder=dict(name="{WEIGHTS}", model_args=dict(patch_size=8, embed_dim=8, depth=1, num_heads=1)),
             masking=dict(type="BlockMask", mask_patch_size=8), losses=[dict(type="MaskedL1")])
data = dict(img_size=32)
global_batch_size = 4
schedule = dict(epochs=2, warmup_epochs=0)
export = []
"""


class Runs:
    """A pickle of this runs a program when it is loaded."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def settings(draw: random.Random) -> dict:
    """The settings of a run, with one thing in them that no file may choose."""
    model = {
        "encoder": {"name": WEIGHTS, "model_args": {k: v for k, v in SMALL.items() if k != "img_size"}},
        "masking": {"type": "BlockMask", "mask_patch_size": 8},
        "losses": [{"type": "MaskedL1"}],
    }
    whole = {"model": model, "data": {"img_size": 32}, "global_batch_size": 4, "schedule": {"epochs": 2}}
    whole["schedule"]["warmup_epochs"] = 0
    name, part = draw.choice(NAMES), draw.choice(PARTS)
    match draw.randrange(8):
        case 0:
            model["losses"][0]["type"] = name
        case 1:
            model["encoder"]["name"] = name
        case 2:
            model["encoder"]["model_args"] = draw.choice(ARGUMENTS)
        case 3:
            model["masking"] = {"type": name}
        case 4:
            model["decoder"] = {"type": name}
        case 5:
            model["target"] = {"type": "FrozenFeatures", "source": name}
        case 6:
            whole["init_from"] = name
        case _:
            whole["data"]["transforms"] = [part if isinstance(part, dict) else {"type": name}]
    return whole


def make_run(folder: Path, draw: random.Random) -> None:
    """A run that was killed before its first checkpoint; half of them are of an older version, with config.py alone."""
    folder.mkdir(parents=True)
    text = draw.choice(TEXTS)
    if draw.random() < 0.5:
        (folder / "settings.json").write_text(json.dumps(settings(draw)))
    (folder / "config.py").write_text(f"import trap\n{CODE}\nmodel = trap.Net()\n")
    asked = {"config": "trap.py", "data": text, "test_data": draw.choice(TEXTS), "laptop": False, "source": None}
    judged = {"before": {"knn": {"top1": 1, "interval": [0, 2]}}, "after": {"knn": {"top1": 1, "interval": [0, 2]}}}
    summary = {"status": text, "asked": asked, "steps": text, "versions": {"a2mim": text}, "data": text}
    summary |= {"judged": judged, "machine": {text: text}, "origins": {text: text}}
    summary |= {"changes": [{"step": 1, "changed": text}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "log.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0, "event": text, "says": text}) + "\n{\n")
    result = {"protocol": text, "protocol_hash": text, "constants": {text: text}, "encoder": text, "encoder_hash": "a"}
    result |= {"data": text, "data_fingerprint": text, "top1_last": 1.0, "top1_best": 1.0, "interval": [0, 1]}
    result |= {"n_test": 2, "correct": "10", "metric": text, "test_fingerprint": text, "test_data": text}
    (folder / "results.json").write_text(json.dumps([result, result | {"encoder_hash": text}]))
    (folder / "analysis").mkdir()
    (folder / "analysis" / "rank.json").write_text(json.dumps({"key": text, "name": text, "values": [text]}))


def make_export(folder: Path, draw: random.Random) -> None:
    """An exported folder with a receipt that fits it, and one thing in it that no file may choose."""
    folder.mkdir(parents=True)
    config = {"architecture": WEIGHTS, "num_classes": 0, "model_args": dict(SMALL), "pretrained_cfg": {}}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    which = draw.randrange(4)
    if which == 0:
        config["architecture"] = draw.choice(NAMES)
    elif which == 1:
        config["model_args"] |= draw.choice(ARGUMENTS)
    elif which == 2:
        config |= {"model_type": draw.choice(NAMES), "auto_map": {"AutoModel": "trap.Net"}}
    else:
        config |= {"model_type": "timm_wrapper", "architecture": draw.choice(NAMES), "model_args": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": CODE, "image_std": [CODE]}))
    metadata = {"format": "pt", "architecture": json.dumps("trap.Net"), "model_args": json.dumps({"a": CODE})}
    save_file({"cls_token": torch.zeros(1, 1, 8)}, folder / "model.safetensors", metadata=metadata)
    (folder / "README.md").write_text(f"```python\n{CODE}\n```\n")
    (folder / "trap.py").write_text(TRAP)
    np.savez(folder / "reference.npz", images=np.array([Runs()], dtype=object))
    check = {"packages": ["timm", "trap"], "weights": "model.safetensors", "contract": ["timm", {"architecture": CODE}]}
    receipt = {"target": "timm", "architecture": draw.choice(NAMES), "check": check, "tensors": {}}
    (folder / "receipt.json").write_text(json.dumps(receipt | {"sha256": hash_files(folder)}))


def make_weights(folder: Path, draw: random.Random) -> dict[str, str]:
    """Sources of every kind, by what they are; none of them is an encoder that may be loaded."""
    folder.mkdir()
    state = {"cls_token": torch.zeros(1, 1, 8)}
    encoder = {"name": WEIGHTS, "model_args": dict(SMALL), "img_size": [32, 32], "in_chans": 3, "frozen": []}
    meta = {"encoder": encoder, "pixels": {"mean": [0.5] * 3, "std": [0.5] * 3}, "step": 1}
    for number, change in enumerate(({"name": draw.choice(NAMES)}, {"model_args": draw.choice(ARGUMENTS)})):
        changed = meta | {"encoder": encoder | change, "settings": json.dumps(settings(draw)), "request": CODE}
        torch.save({"format": FORMAT, "state_dict": state, "meta": changed}, folder / f"step_{number}.pth")
    classifier = {"classifier": encoder | {"name": draw.choice(NAMES)}}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta | classifier}, folder / "tuned.pth")
    torch.save({"state_dict": Runs()}, folder / "pickle.pth")
    torch.save(Runs(), folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps({"model": Runs()}))
    np.save(folder / "array.npy", np.array([Runs()], dtype=object))
    paths = {path.name: str(path) for path in sorted(folder.iterdir())}
    paths |= {f"named {name}": f"resnet18:{path}" for name, path in paths.items() if name != "array.npy"}
    for number in range(4):
        make_export(folder / f"export{number}", draw)
        paths[f"export{number}"] = str(folder / f"export{number}")
    for number in range(3):
        make_run(folder / f"run{number}", draw)
        paths[f"run{number}"] = str(folder / f"run{number}")
    return paths


def make_images(folder: Path, draw: random.Random) -> None:
    """Images whose folders, names, descriptions and lists hold payloads."""
    classes = [text.replace("/", "_")[:60] for text in draw.sample(TEXTS, 2)]
    for part in ("train", "test"):
        for number in range(8):
            place = folder / part / classes[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.full((40, 40, 3), 20 * number + 5, np.uint8)
            tifffile.imwrite(place / f"{number}.tif", pixels, description=CODE, extratags=[(65000, 2, 0, CODE, True)])
        np.save(folder / part / classes[0] / "9.npy", np.array([Runs()] * 3, dtype=object))
    (folder / "train" / "classes.txt").write_text("\n".join(map(json.dumps, classes)) + "\n")


def make_shards(folder: Path, draw: random.Random) -> None:
    """A shard with hostile names and labels, beside it indices and records that hold pickles and code."""
    folder.mkdir()
    path = folder / "x-0000.tar"
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 100, 50)).save(buffer, "JPEG", comment=CODE.encode())
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(6):
            key = f"{draw.choice(TEXTS).replace('.', '_')}{number}"
            label = json.dumps({"label": draw.choice([*PARTS, 1, 0]), "class": draw.choice(TEXTS)})
            contents = {"jpg": buffer.getvalue(), "json": label.encode(), "pyd": pickle.dumps(Runs())}
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.pax_headers = len(content), {"comment": CODE}
                archive.addfile(member, io.BytesIO(content))
    np.savez(folder / "x-0000.tar.index.npz", head=np.array([Runs()], dtype=object), samples=np.zeros(3))
    (folder / "x-0000.idx").write_text(f"v1.2 1\njpg 512 10 {CODE}\n")
    (folder / "manifest.json").write_text(json.dumps({"source": CODE, "images": PARTS}))
    (folder / "list.txt").write_text(f"pipe:touch {MARK}\n{CODE}\n")
    (folder / "images.csv").write_text(f"path,label\n{CODE}.jpg,{CODE}\n")


# By command: lines with the exit status that each must have; None: 0 or 1, as the payload may do no harm.
DATA = "--data images/train --test-data images/test"
LINES = {
    "pretrain": [("recipe.py --data images/train --resume --work-dir {run}", 1)],
    "finetune": [
        ("mae-finetune {source} " + DATA + " --work-dir out/tuned --laptop", 1),
        ("mae-finetune --resume --work-dir {run}", 1),
    ],
    "evaluate": [("{source} images --protocol dino-knn --no-feature-cache", 1)],
    "compare": [("{run} {run}", None), ("{source} {run}", None)],
    "knn": [("{source} " + DATA, 1)],
    "linear-probe": [("{source} " + DATA, 1)],
    "export": [("{source} --out out/export", 1), ("{source} --to safetensors --no-calibration --out out/export", 1)],
    "verify": [("{export}", 1)],
    "embed": [("{source} images/train --out out/e.npz", 1)],
    "shards make": [("images/train out/shards --processes 1", None)],
    "shards check": [("shards/x-0000.tar --all --processes 1", None), ("shards/list.txt", 1)],
    "shards ls": [("shards/x-0000.tar --samples --processes 1", 0)],
    "shards index": [
        ("shards/x-0000.tar --processes 1", 0),
        ("shards/x-0000.tar --processes 1 --dali import", 1),
        ("shards/list.txt", 1),
    ],
    "shards reshard": [("shards/x-0000.tar shards --processes 1", 1), ("shards/x-0000.tar out/again --processes 1", 0)],
    "measure-stats": [("images/train", None), ("shards/images.csv", 1), ("shards/x-0000.tar", 0)],
    "bench-data": [("shards/x-0000.tar --images 2 --workers 0 --img-size 32 --batch-size 2", 0)],
    "check-model": [("{export}", 1), ("local-dir:{export}", 1)],
    "report": [("{run} --out out/report.html", 0)],
    "analyze": [("{source} --what rank --data images/train --out out/analysis", 1)],
    "recipes": [("--copy {export}", 1)],
    "settings": [("{export}", 1)],
    "worth-it": [("images/train --with {source} --minutes 0.1 --img-size 32 --out out/worth", 1)],
}
LINES["refine"] = [
    ("{source} " + DATA + " --work-dir out/refined --laptop", 1),
    ("--resume --work-dir {run}", 1),
]


def leaves(parser, before: str = "") -> list[str]:
    """Every command of the parser, as it is typed."""
    actions = [action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict)]
    if not actions:
        return [before.strip()]
    return [name for word, inner in actions[0].choices.items() for name in leaves(inner, f"{before} {word}")]


def run(words: list[str], found: list[str]) -> dict:
    said, errors = io.StringIO(), io.StringIO()
    status, trace = None, ""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        except BaseException:
            trace = traceback.format_exc()
    if Path(MARK).exists():
        found.append("made the mark")
        Path(MARK).unlink()
    if "trap" in sys.modules:
        found.append("imported the trap")
        del sys.modules["trap"]
    told = {"words": words, "status": status, "out": said.getvalue(), "err": errors.getvalue(), "trace": trace}
    told["found"] = list(found)
    found.clear()
    return told


def commands(sources: dict[str, str]) -> list[tuple[list[str], int | None]]:
    """(words, status) of everything to run."""
    made = []
    kinds = {"source": sources, "export": {k: v for k, v in sources.items() if k.startswith("export")}}
    kinds["run"] = {k: v for k, v in sources.items() if k.startswith("run")}
    for command in leaves(build_parser()):
        for line, status in LINES[command]:
            kind = next((kind for kind in kinds if f"{{{kind}}}" in line), None)
            for path in kinds[kind].values() if kind else [""]:
                words = line.format(**dict.fromkeys(kinds, shlex.quote(path)))
                made.append((shlex.split(f"{command} {words}"), status))
    return made


def is_harmless(event: str, arguments: tuple) -> bool:
    """What libraries do when they are imported: matplotlib lists fonts, urllib3 looks whether this machine has IPv6."""
    if event in ("socket.gethostname", "socket.__new__"):
        return True
    return arguments[:1] == ("fc-list",) or (event == "socket.bind" and arguments[1] == ("::1", 0))


def main_() -> None:
    draw, found = random.Random(sys.argv[1]), []
    here = Path.cwd()
    sys.path.insert(0, str(here))  # the worst case: the files lie where Python looks for modules
    (here / "trap.py").write_text(TRAP)
    (here / "recipe.py").write_text(RECIPE)
    make_images(here / "images", draw)
    make_shards(here / "shards", draw)
    sources = make_weights(here / "weights", draw)

    def watch(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN) and not is_harmless(event, arguments):
            found.append(f"{event} {arguments!r}"[:300])

    sys.addaudithook(watch)
    for words, expected in commands(sources):
        shutil.rmtree(here / "out", ignore_errors=True)
        (here / "out").mkdir()
        print(json.dumps(run(words, found) | {"expected": expected}), flush=True)


if __name__ == "__main__":
    main_()
