"""Checkpoints: damage anywhere in the file is noticed."""

import os
import struct

import pytest
import torch

from a2mim.checkpoints import FORMAT, list_checkpoints, read_checkpoint, read_newest, write_checkpoint


def test_a_tensor_that_passes_for_a_folder_is_noticed(tmp_path):
    """One bit in the archive's directory, which Python's reader ignores; torch then loads whatever is in memory."""
    path = tmp_path / "step_00000001.pth"
    write_checkpoint(path, {"format": FORMAT, "tensor": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    at, name = content.index(b"PK\x01\x02"), b""
    while not name.endswith(b"/data/0"):
        (length,) = struct.unpack_from("<H", content, at + 28)
        name, entry = bytes(content[at + 46 : at + 46 + length]), at
        at = content.find(b"PK\x01\x02", at + 1)
    (attributes,) = struct.unpack_from("<I", content, entry + 38)
    struct.pack_into("<I", content, entry + 38, attributes | 0x10)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data/0|directory"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"not a zip file", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_a_value_error(tmp_path, content):
    path = tmp_path / "step_00000001.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"zip|archive|directory|damaged|header|failed"):
        read_checkpoint(path)


def test_a_pipe_among_checkpoints_is_none_of_them(tmp_path):
    write_checkpoint(tmp_path / "step_00000001.pth", {"format": FORMAT})
    os.mkfifo(tmp_path / "step_00000002.pth")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001.pth"]
    assert read_newest(tmp_path)[1] == {"format": FORMAT}
