"""What A²MIM costs over the bare backbone, as a ratio measured side by side in one run.

python benchmarks/engine.py [--models xcit_nano_12_p16_224 resnet50] [--batch-size 8] [--rounds 9] [--device cpu]

and the seconds from the command to the end of the first training step of `tools/pretrain.py configs/a2mim_xcit.py`.
With --online, instead, that recipe's whole laptop scale, and what share of its time the k-NN on the way took.

Bare: forward, mean of the feature map, backward, AdamW on the backbone. Whole: normalise uint8, mask, fill, token,
decoder, L1 and Fourier loss, backward, AdamW on everything that trains: what a run does on each batch, the loading of
data aside. The two take turns; the ratio is the median over rounds of whole / bare, each round's pair measured one
after the other.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import a2mim  # before timm: it mends torchvision

# isort: split
import timm
import torch

from a2mim.engine.assembly import build_mim, choose_amp
from a2mim.engine.config import load_config
from a2mim.engine.optim import StepWrapper, build_optimizer

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"xcit": "a2mim_xcit.py", "resnet": "a2mim_resnet50.py"}


def recipe_of(name: str) -> str:
    """The file of the recipe for a network's family."""
    return next(file for prefix, file in RECIPES.items() if name.startswith(prefix))


def whole_step(name: str, images: torch.Tensor, device: torch.device, amp: str | None):
    """One step of the recipe with `name` as its encoder."""
    settings = load_config(ROOT / "configs" / recipe_of(name))
    settings.model["encoder"]["name"] = name
    model = build_mim(settings).to(device).train()
    optimizer = build_optimizer(model, settings.optimizer, settings.global_batch_size)
    wrapper = StepWrapper(optimizer, amp, device.type, clip_grad=settings.clip_grad)
    generator = torch.Generator(device)
    return lambda: model.train_step({"images": images, "generator": generator}, wrapper)


def bare_step(name: str, images: torch.Tensor, device: torch.device, amp: str | None, frozen: set[str]):
    """Forward, backward and the same optimiser on the backbone alone, on the same images, with the same frozen
    parameters.
    """
    model = timm.create_model(name, num_classes=0).to(device).train()
    trained = [p for n, p in model.named_parameters() if n not in frozen]
    for n in frozen:
        model.get_parameter(n).requires_grad_(False)
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    floats = images.float() / 255

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            loss = model.forward_features(floats).float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(name: str, batch_size: int, rounds: int, device: torch.device) -> str:
    images = torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8).to(device)
    amp = choose_amp("auto", device)
    whole = whole_step(name, images, device, amp)
    frozen = set(a2mim.MaskedEncoder(name).frozen)
    bare = bare_step(name, images, device, amp, frozen)
    for step in (whole, bare):
        step()
    pairs = [(seconds(whole, device), seconds(bare, device)) for _ in range(rounds)]
    ratios = sorted(w / b for w, b in pairs)
    whole_ms, bare_ms = (1000 * statistics.median(t) / batch_size for t in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.3f}–{ratios[-1]:.3f}"
    return (
        f"{name}: whole / bare {statistics.median(ratios):.3f} ({spread} over {rounds} rounds);"
        f" {whole_ms:.1f} against {bare_ms:.1f} ms an image at batch {batch_size} on {device}, amp {amp}"
    )


def seconds_to_first_step(device: str) -> float:
    """From starting the process to the first line of log.jsonl, imports, data, model and first picture included."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run" / "log.jsonl"
        command = [sys.executable, str(ROOT / "tools" / "pretrain.py"), str(ROOT / "configs" / "a2mim_xcit.py")]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--work-dir", str(log.parent), "--device", device],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (log.exists() and log.read_text().endswith("\n")):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first step")
            time.sleep(0.01)
        taken = time.perf_counter() - started
        process.kill()
        process.wait()
    return taken


def online_share(device: str) -> str:
    """What the k-NN on the way cost in a run at laptop scale, and what it showed."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = ROOT / "configs" / "a2mim_xcit.py"
        summary = a2mim.pretrain(recipe, work_dir=Path(folder) / "run", device=device, export=[])
    found = summary["online_knn"]
    history = ", ".join(f"epoch {line['epoch']:g}: {line['knn_top1']:.1f} %" for line in found["history"])
    return (
        f"k-NN on the way: {found['share_of_time']:.1%} of the time, {found['images']} images (train, test);"
        f" {history}; {found['passed_over']} epochs passed over"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["xcit_nano_12_p16_224", "resnet50"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--online", action="store_true", help="the cost of the k-NN on the way, nothing else")
    chosen = parser.parse_args()
    if chosen.online:
        print(online_share(chosen.device))
        return
    starts = sorted(seconds_to_first_step(chosen.device) for _ in range(3))
    print(
        f"command to first training step: {starts[1]:.1f} s ({starts[0]:.1f}–{starts[2]:.1f}, three starts)", flush=True
    )
    for name in chosen.models:
        print(compare(name, chosen.batch_size, chosen.rounds, torch.device(chosen.device)), flush=True)


if __name__ == "__main__":
    main()
