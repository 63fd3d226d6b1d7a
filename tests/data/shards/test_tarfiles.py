import os
import tarfile

import pytest
from small_images import write_tar

from a2mim.data.shards.tarfiles import BLOCK, TarError, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
FILES = [("a.jpg", b"x" * 700), ("empty.cls", b""), ("deep/" * 30 + "b.jpg", b"y" * 512), ("c/d.e.f", b"z")]
LONG = [("n" * 180 + ".jpg", b"long"), ("été/" + "m" * 150 + ".png", b"unicode"), ("last.jpg", b"w" * 1025)]


def contents(path) -> list[tuple[str, bytes]]:
    with open(path, "rb") as file:
        return [(name, os.pread(file.fileno(), size, offset)) for name, offset, size in members(str(path))]


@pytest.mark.parametrize("format", FORMATS)
def test_members_of_every_format_are_found_with_their_bytes(tmp_path, format):
    files = FILES + (LONG if format != "ustar" else [])
    assert contents(write_tar(tmp_path / "x.tar", files, FORMATS[format])) == files


def test_only_regular_files_are_members(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "l" * 120
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("file.jpg"))
    assert contents(path) == [("file.jpg", b"")]


def test_sizes_in_base_256_are_understood(tmp_path):
    path = write_tar(tmp_path / "x.tar", FILES)
    archive = bytearray(path.read_bytes())
    archive[124:136] = b"\x80" + (700).to_bytes(11, "big")
    path.write_bytes(with_checksum(archive))
    assert contents(path) == FILES


def test_times_in_a_gnu_header_are_no_part_of_the_name(tmp_path):
    """GNU tar's incremental archives keep atime and ctime where POSIX has the front of a long name."""
    path = write_tar(tmp_path / "x.tar", FILES[:1], tarfile.GNU_FORMAT)
    archive = bytearray(path.read_bytes())
    archive[345:369] = b"14701234567\0" * 2
    path.write_bytes(with_checksum(archive))
    assert contents(path) == FILES[:1]


def with_checksum(archive: bytearray) -> bytearray:
    """The first header's."""
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:BLOCK])
    return archive


def test_a_pax_size_goes_before_the_headers(tmp_path):
    """A PAX archive keeps sizes of 8 GiB and more in a record, and then the header's field is not to be believed."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"size": "700", "comment": "two\nlines = one"}
        archive.addfile(info)
        archive.fileobj.write(b"x" * 700 + b"\0" * (2 * BLOCK - 700))
        archive.offset += 2 * BLOCK
    assert contents(path) == [("a.jpg", b"x" * 700)]


@pytest.mark.parametrize("length", [0, 100, 512, 600, 1536, 1600, 2048, 2560])
def test_a_cut_anywhere_is_found(tmp_path, length):
    path = write_tar(tmp_path / "x.tar", FILES[:2] + FILES[:1])
    os.truncate(path, length)
    with pytest.raises(TarError, match=r"x\.tar: byte \d+: .*cut short") as error:
        contents(path)
    assert int(str(error.value).partition("byte ")[2].partition(":")[0]) <= length


@pytest.mark.parametrize("byte", [0, 124, 150, 1536 + 3])
def test_a_changed_header_is_found_at_its_byte(tmp_path, byte):
    path = write_tar(tmp_path / "x.tar", FILES)
    archive = bytearray(path.read_bytes())
    archive[byte] ^= 0x55
    path.write_bytes(archive)
    with pytest.raises(TarError, match=f"x.tar: byte {byte // BLOCK * BLOCK}: bad header checksum"):
        contents(path)


def test_zeros_in_the_place_of_members_are_found(tmp_path):
    path = write_tar(tmp_path / "x.tar", FILES)
    archive = bytearray(path.read_bytes())
    archive[1536:2048] = bytes(512)
    path.write_bytes(archive)
    with pytest.raises(TarError, match=r"byte 1536: members follow an end-of-archive marker"):
        contents(path)
    path.write_bytes(archive[:1536] + bytes(1 << 20))
    with pytest.raises(TarError, match=r"byte 1536: \d+ bytes of zeros"):
        contents(path)


def test_a_compressed_archive_says_what_to_do(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(TarError, match="unpack it with gunzip"):
        contents(path)


def test_something_else_is_no_tar(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"<html>" * 200)
    with pytest.raises(TarError, match="not a tar file"):
        contents(path)


@pytest.mark.parametrize("size", [b"0000000zzzz\0", b"0000000\xff\xff\xff\xff\0"])
def test_a_size_that_is_no_number_is_a_fault_of_the_archive(tmp_path, size):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "odd.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(TarError, match=r"odd\.tar: byte 0: a size that is no number"):
        list(members(str(tmp_path / "odd.tar")))
