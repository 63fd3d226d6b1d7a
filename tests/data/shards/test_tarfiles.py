import os
import random
import tarfile
import time
import tracemalloc

import pytest
from small_images import write_tar

from a2mim.data.shards.tarfiles import BLOCK, TarError, files, members

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


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        (b"\x1f\x8b\x08", "gzip; unpack it with gunzip"),
        (b"BZh91AY", "bzip2; unpack it with bunzip2"),
        (b"\xfd7zXZ\0", "xz; unpack it with unxz"),
        (b"\x28\xb5\x2f\xfd", "zstd; unpack it with unzstd"),
        (b"PK\x03\x04", "a zip archive and no tar file; unzip it"),
    ],
)
@pytest.mark.parametrize("length", [100, 5000])
def test_a_compressed_archive_says_what_to_do(tmp_path, beginning, said, length):
    path = tmp_path / "x.tar"
    path.write_bytes(beginning.ljust(length, b"\x55"))
    with pytest.raises(TarError, match=said):
        contents(path)


def test_a_member_whose_name_begins_like_a_compressed_file_is_a_member(tmp_path):
    files = [("BZh/a.jpg", b"x")]
    assert contents(write_tar(tmp_path / "x.tar", files)) == files


@pytest.mark.parametrize("blocks", [1, 20, 512, 2048, 1000])
def test_the_end_may_be_padded_to_any_usual_record(tmp_path, blocks):
    """As `tar -b N` does."""
    path = write_tar(tmp_path / "x.tar", FILES)
    archive = path.read_bytes().rstrip(b"\0")
    archive += bytes(-len(archive) % BLOCK + 2 * BLOCK)
    path.write_bytes(archive + bytes(-len(archive) % (blocks * BLOCK)))
    assert contents(path) == FILES
    with open(path, "ab") as file:
        file.write(bytes(7 << 20) + b"x")
    with pytest.raises(TarError):
        contents(path)


def extension(kind: bytes, content: bytes, claimed: int | None = None) -> bytes:
    """An extension header and what it announces."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, len(content) if claimed is None else claimed
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


def test_a_pax_header_of_many_records_takes_no_time(tmp_path):
    member = tarfile.TarInfo("a.jpg").tobuf()
    path = tmp_path / "x.tar"
    path.write_bytes(extension(b"x", b"6 a=b\n" * 170_000) + member + bytes(2 * BLOCK))
    started = time.process_time()
    assert contents(path) == [("a.jpg", b"")] and time.process_time() - started < 2


@pytest.mark.parametrize("kind", [b"L", b"K", b"x"])
def test_a_long_extension_is_refused_before_it_is_read(tmp_path, kind):
    """A sparse file of 12 GB takes no room on the disk, and would take it in memory."""
    path = tmp_path / "x.tar"
    path.write_bytes(extension(kind, b"", 12 << 30))
    os.truncate(path, 13 << 30)
    tracemalloc.start()
    with pytest.raises(TarError, match=r"x\.tar: byte 0: an extension header of 12884901888 bytes; at most \d+ are"):
        contents(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"99 path=a\n", b"3 path=a\n", b"path=a\n", b"10 path a\n", b"-9 path=a\n", b"9" * 5000 + b" path=a\n"]
)
def test_a_damaged_pax_header_is_a_fault_of_the_archive(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(extension(b"x", content) + tarfile.TarInfo("a.jpg").tobuf() + bytes(2 * BLOCK))
    with pytest.raises(TarError, match=r"x\.tar: byte 0: a PAX header that cannot be read"):
        contents(path)


@pytest.mark.parametrize("size", [b"9" * 18, b"1" * 5000, b"-5", b"0x10", b""])
def test_a_pax_size_is_believed_only_up_to_the_end_of_the_file(tmp_path, size):
    record = b"size=" + size + b"\n"
    record = next(b"%d " % n + record for n in range(8, 6000) if len(b"%d " % n + record) == n)
    path = tmp_path / "x.tar"
    path.write_bytes(extension(b"x", record) + tarfile.TarInfo("a.jpg").tobuf() + bytes(2 * BLOCK))
    with pytest.raises(TarError, match=r"x\.tar: byte \d+: (cut short|a size that is no number)"):
        contents(path)


def test_sparse_files_are_lost_and_what_follows_is_found(tmp_path):
    """GNU tar -S keeps a map in the header and in the blocks behind it."""
    info = tarfile.TarInfo("hole.jpg")
    info.type, info.size = b"S", 700
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header = with_checksum(header)
    path = tmp_path / "x.tar"
    end = write_tar(tmp_path / "y.tar", FILES).read_bytes()
    path.write_bytes(header + bytes(BLOCK) + b"x" * 1024 + end)
    lost = []
    assert [name for name, *_ in files(str(path), lost)] == [name for name, _ in FILES] and lost == ["hole.jpg"]


def test_damaged_headers_end_in_a_fault_of_the_archive_and_nothing_else(tmp_path):
    """A seeded fuzz: bytes of headers are changed and their checksums made right again."""
    rng = random.Random(0)
    whole = bytearray(
        extension(b"x", b"17 path=d/b.jpg.x\n"[:17] + b"\n")
        + write_tar(tmp_path / "y.tar", [*FILES, *LONG], tarfile.PAX_FORMAT).read_bytes()
    )
    path, refused = tmp_path / "x.tar", 0
    headers = [k for k in range(0, len(whole), BLOCK) if whole[k + 257 : k + 262] == b"ustar"]
    started = time.process_time()
    for _ in range(1500):
        archive = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            start = rng.choice(headers)
            place = rng.choice([rng.randrange(BLOCK), 156, rng.randrange(124, 136), BLOCK + rng.randrange(20)])
            archive[start + place] = rng.choice([0, 0x2D, 0x37, 0x80, 0xFF, 0x53, 0x78, 0x31, rng.randrange(256)])
            header = archive[start : start + BLOCK]
            header[148:156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        path.write_bytes(archive)
        try:
            for _, offset, size in files(str(path), []):
                assert 0 <= offset <= offset + size <= len(archive)
        except TarError as error:
            refused += 1
            assert str(error).startswith(f"{path}: byte ")
    assert 100 < refused < 1500 and time.process_time() - started < 20


def test_something_else_is_no_tar(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"<html>" * 200)
    with pytest.raises(TarError, match="not a tar file"):
        contents(path)


@pytest.mark.parametrize(
    "size", [b"0000000zzzz\0", b"0000000\xff\xff\xff\xff\0", b"-0000001000\0", b"0o00000017\0\0", b"1_0\0"]
)
def test_a_size_that_is_no_number_is_a_fault_of_the_archive(tmp_path, size):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "odd.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(TarError, match=r"odd\.tar: byte 0: a size that is no number"):
        list(members(str(tmp_path / "odd.tar")))
