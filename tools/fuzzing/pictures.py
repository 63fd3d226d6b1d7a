"""Images of each decoder, folders and lists of them."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from a2mim.data import Access, EvalLoader, open_dataset
from a2mim.data.decode import PixelFormat, decode
from fuzzing.damage import Damage, flipped, in_npy, in_png, one_of
from fuzzing.guard import Subject

FORMAT = PixelFormat(3, 16, value_range=(0, 1), nodata=7)
ACCESS = Access(processes=1)


def picture(number: int = 0) -> np.ndarray:
    """(40, 56, 3) uint8, smooth like a photograph."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((56, 40), Image.Resampling.BICUBIC))


DEEP = picture().astype(np.uint16) * 257


def saved(kind: str, mode: str = "RGB", number: int = 0, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


PAGES = DEEP.transpose(2, 0, 1).copy()
WHOLE: dict[str, tuple[bytes, Damage]] = {
    "jpeg": (saved("JPEG"), flipped),
    "jpeg-progressive": (saved("JPEG", progressive=True), flipped),
    "jpeg-cmyk": (saved("JPEG", "CMYK"), flipped),
    "png": (saved("PNG"), one_of(flipped, in_png)),
    "png-palette": (saved("PNG", "P"), one_of(flipped, in_png)),
    "webp": (saved("WEBP"), flipped),
    "gif": (saved("GIF"), flipped),
    "bmp": (saved("BMP"), flipped),
    "ppm": (saved("PPM"), flipped),
    "ppm-deep": (b"P6 56 40 65535\n" + DEEP.astype(">u2").tobytes(), flipped),
    "jp2": (saved("JPEG2000"), flipped),
    "avif": (saved("AVIF"), flipped),
    "tiff": (saved("TIFF"), flipped),
    "tiff-lzw": (saved("TIFF", compression="tiff_lzw"), flipped),
    "tiff-jpeg": (saved("TIFF", compression="jpeg"), flipped),
    "tiff-bands": (tiff(picture(), photometric="minisblack", planarconfig="contig"), flipped),
    "tiff-deflate": (tiff(DEEP, photometric="rgb", compression="zlib"), flipped),
    "tiff-tiles": (tiff(DEEP, photometric="rgb", tile=(16, 16)), flipped),
    "tiff-big": (tiff(DEEP, photometric="rgb", bigtiff=True), flipped),
    "tiff-imagej": (tiff(PAGES, imagej=True, metadata={"axes": "CYX"}), flipped),
    "tiff-ome": (tiff(PAGES, ome=True, metadata={"axes": "CYX"}), flipped),
    "npy": (npy(np.linspace(0, 1, 40 * 56 * 3).reshape(40, 56, 3)), one_of(flipped, in_npy)),
}


def decoded(content: bytes, damage: Damage, folder: Path) -> Subject:
    """Damage is an error of the image, or gives pixels of the form that was asked for."""
    path = folder / "image"
    path.write_bytes(content)

    def read() -> None:
        pixels = decode(path.read_bytes(), pixel_format=FORMAT)
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint16

    return Subject([path], read, {path: damage}, names_file=False)


def folder_of_images(folder: Path) -> Subject:
    """Through the loader, as a run reads them."""
    paths = []
    for number, kind in enumerate(("jpeg", "png", "tiff", "webp", "npy")):
        for where in "ab":
            path = folder / "images" / where / f"{number}.{kind.replace('jpeg', 'jpg')}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy(picture()) if kind == "npy" else WHOLE[kind][0])
            paths.append(path)
    return Subject(paths, lambda: read_images(folder / "images"))


def lists(folder: Path) -> Subject:
    """Lists of images and of classes."""
    place = folder / "images"
    for number in range(4):
        path = place / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    (place / "labels.csv").write_text("path,label\n" + "".join(f"{'ab'[n % 2]}/{n}.png,{n % 2}\n" for n in range(4)))
    (place / "list.txt").write_text("".join(f"{'ab'[n % 2]}/{n}.png cat{n % 2}\n" for n in range(4)))
    (place / "classes.txt").write_text("a\nb\n")
    paths = [place / name for name in ("labels.csv", "list.txt", "classes.txt")]

    def read() -> None:
        for source in (*paths[:2], place):
            read_images(source)

    return Subject(paths, read)


def read_images(source: Path) -> list[np.ndarray]:
    dataset = open_dataset(str(source), "train", access=ACCESS)
    loader = EvalLoader(dataset, 32, resize=None, batch_size=4)
    return [image for batch in loader for image in batch["images"].numpy()]


KINDS: dict[str, Callable[[Path], Subject]] = {
    **{f"image-{name}": partial(decoded, content, damage) for name, (content, damage) in WHOLE.items()},
    "folder": folder_of_images,
    "lists": lists,
}
