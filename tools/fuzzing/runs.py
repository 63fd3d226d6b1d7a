"""What a run, a judgement and an embedding leave: records that are read again."""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.data.faults import Faults
from a2mim.data.request import recall
from a2mim.embedding.files import sha256_of
from a2mim.embedding.run import is_damaged
from a2mim.embedding.unfinished import Unfinished
from a2mim.engine.folder import read_summary, reading_of_run
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.records import Launch, Request
from a2mim.engine.resuming import take_up
from a2mim.engine.stored import read_log, read_settings
from a2mim.evaluation.cache import Cache
from a2mim.evaluation.compare import compare_all
from a2mim.evaluation.results import read_results, write_result
from a2mim.export.card import tell_training
from a2mim.report import page
from a2mim.report.page import render
from a2mim.report.records import read_run
from fuzzing.damage import flipped, in_checkpoint, in_json, in_lines, one_bit, one_of
from fuzzing.guard import Subject
from fuzzing.pictures import picture

RECIPE = """
model = dict(
    encoder=dict(name="vit_tiny_patch16_224", model_args=dict(patch_size=8, embed_dim=8, depth=2, num_heads=2)),
    masking=dict(type="BlockMask", mask_patch_size=8, mask_ratio=0.5),
    losses=[dict(type="MaskedL1")],
)
data = dict(img_size=32)
global_batch_size = 4
schedule = dict(epochs=2, warmup_epochs=0)
export = []
"""


@cache
def run_folder() -> Path:
    """A finished run, made once; each subject takes a copy."""
    place = Path(tempfile.mkdtemp(prefix="fuzzed-run-"))
    (place / "images").mkdir()
    for number in range(8):
        Image.fromarray(picture(number)).save(place / "images" / f"{number}.png")
    (place / "tiny.py").write_text(RECIPE)
    with contextlib.redirect_stdout(io.StringIO()):
        a2mim.pretrain(place / "tiny.py", place / "images", place / "run", device="cpu", num_workers=0)
    return place


def a_run(folder: Path) -> Path:
    shutil.copytree(run_folder() / "run", folder / "run")
    shutil.copy(run_folder() / "tiny.py", folder)
    return folder / "run"


def _json_files(run: Path) -> list[Path]:
    """Those with one value each; mmengine's own log has one a line, and nothing reads it."""
    return [path for path in run.rglob("*.json") if path.read_text().count("\n}") <= 1 and "vis_data" not in path.parts]


def log(folder: Path) -> Subject:
    """Damage in a line loses that line alone."""
    run = a_run(folder)
    path = run / "log.jsonl"
    whole = {line: json.loads(line) for line in path.read_bytes().splitlines()}

    def read() -> None:
        lines, _ = read_log(path)
        untouched = [whole[line] for line in path.read_bytes().split(b"\n") if line in whole]
        assert all(line in lines for line in untouched), "a good line is lost"
        read_run(run)

    return Subject([path], read, {path: one_of(flipped, in_lines)})


def records(folder: Path) -> Subject:
    """summary.json, settings.json and other JSON of a run: what a report, a card and a reader of its settings say."""
    run = a_run(folder)
    files = [run / "summary.json", run / "settings.json"]
    files += [path for path in _json_files(run) if path not in files]

    def read() -> None:
        read_summary(run)
        recall(run)
        told = tell_training(run)
        assert told.isprintable(), "the card holds control characters"
        read_run(run)
        reading_of_run(run)
        read_settings(run)

    return Subject(files, read, {path: one_of(flipped, in_json, in_json) for path in files})


def report(folder: Path) -> Subject:
    """The page of a stranger's run: whatever its files hold is text there."""
    run = a_run(folder)
    files = [*_json_files(run), run / "log.jsonl"]
    scripts = render([read_run(run)]).count("<script")

    def read() -> None:
        assert render([read_run(run)]).count("<script") <= scripts, "text from a file is markup"

    damage = {path: one_of(in_json, flipped) if path.suffix == ".json" else in_lines for path in files}
    return Subject(files, read, damage)


def report_text(folder: Path) -> Subject:
    """The page without its figures, which take most of the time."""
    page.svg = lambda plot: ""
    return report(folder)


def old_settings(folder: Path) -> Subject:
    """A run that has config.py alone: plain values, never executed."""
    run = a_run(folder)
    (run / "settings.json").unlink()
    return Subject([run / "config.py"], lambda: read_settings(run))


def resumed(folder: Path) -> Subject:
    """A stranger's run is taken up: its settings and the checkpoint's copy of them choose no code."""
    run = a_run(folder)
    newest = list_checkpoints(run / "checkpoints")[-1]
    for path in list_checkpoints(run / "checkpoints")[:-1]:
        path.unlink()
    files = [newest, run / "settings.json", run / "summary.json", run / "log.jsonl"]
    request = Request.of(folder / "tiny.py", None, None, None)

    def read() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            take_up(PretrainSettings, request, Launch(run, True), run)

    damage = {newest: one_of(in_checkpoint, one_bit), files[3]: one_of(flipped, in_lines)}
    return Subject(files, read, damage | {path: one_of(flipped, in_json, in_json) for path in files[1:3]})


def results(folder: Path) -> Subject:
    """Two results of one test set, compared."""
    base = {"protocol": "p", "protocol_hash": "h", "constants": {"k": 20}, "data": "d", "data_fingerprint": "f"}
    numbers = {"top1_last": 50.0, "top1_best": None, "interval": [40.0, 60.0], "n_test": 4, "test_fingerprint": "t"}
    for name, correct in (("a", [True, True, False, False]), ("b", [True, False, False, True])):
        result = {**base, **numbers, "encoder": name, "encoder_hash": name, "correct": correct}
        write_result(result, folder / name)
    files = [folder / name / "results.json" for name in "ab"]

    def read() -> None:
        compare_all([result for path in files for result in read_results(path)])

    damage = {path: one_of(flipped, in_json, in_json) for path in files}
    return Subject(files, read, damage, names_file=False)  # what cannot be paired is told by its encoders


class _Loader:
    """Batches of known rows, from a start."""

    def __init__(self, start: int):
        self.start, self.faults = start, Faults()

    def __iter__(self):
        for row in range(self.start, 12, 4):
            rows = torch.arange(row, min(row + 4, 12))
            yield {"images": rows.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous(), "ids": rows}


def feature_cache(folder: Path) -> Subject:
    """Damaged rows are made again: the features are always the same."""
    cached = Cache(folder / "cache")

    def made() -> dict[str, np.ndarray]:
        entry = cached.entry({"set": "a"}, "a set")
        rows = lambda images: {"cls": images.float().mean((2, 3)).repeat(1, 4)}  # noqa: E731
        entry.take(["cls"], 12, lambda parts: rows, _Loader, "a set")
        return {part: np.array(entry.part(part)) for part in ("cls", "signature", "shown")}

    whole = made()

    def read() -> None:
        assert all(np.array_equal(whole[part], found) for part, found in made().items()), "other features"

    files = sorted(path for path in (folder / "cache").rglob("*") if path.suffix in (".npy", ".json"))
    return Subject(files, read, {path: one_of(flipped, one_bit, one_bit) for path in files})


def unfinished_embeddings(folder: Path) -> Subject:
    """Rows that are done are as they were written, or all are made again."""
    rows = np.arange(48, dtype=np.float32).reshape(12, 4)
    place = folder / "e.npz.unfinished"
    work = Unfinished(place, 12, 4, {"set": "a"})
    work.put(np.arange(8), rows[:8])
    work.save(8)

    def read() -> None:
        found = Unfinished(place, 12, 4, {"set": "a"})
        assert found.done in (0, 8), "another number of rows"
        assert not found.done or np.array_equal(found.embeddings[:8], rows[:8]), "other embeddings"
        assert not found.done or found.readable[:8].all(), "other rows are unreadable"

    files = sorted(place.iterdir())
    return Subject(files, read, {path: one_of(flipped, one_bit, one_bit) for path in files})


def embeddings(folder: Path) -> Subject:
    """A finished file of embeddings does not pass for whole once a byte is another."""
    path = folder / "e.npz"
    np.savez(path, embedding=np.ones((3, 4), np.float32))
    whole = path.read_bytes()
    (folder / "e.npz.json").write_text(json.dumps({"sha256": sha256_of(path)}))

    def read() -> None:
        assert is_damaged(path) == (path.read_bytes() != whole), "damage is not noticed"

    return Subject([path], read, {path: one_of(flipped, one_bit)})


KINDS: dict[str, Callable[[Path], Subject]] = {
    "log": log,
    "records": records,
    "report": report,
    "report-text": report_text,
    "old-settings": old_settings,
    "resumed": resumed,
    "results": results,
    "feature-cache": feature_cache,
    "unfinished-embeddings": unfinished_embeddings,
    "embeddings": embeddings,
}
