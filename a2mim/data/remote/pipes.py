"""`pipe:COMMAND`: a shard that a shell command writes to its standard output. It runs only if the user allows it."""

import os
import select
import signal
import subprocess
import tempfile
from typing import BinaryIO

from a2mim.data.access import Access
from a2mim.data.errors import ShardError
from a2mim.data.remote.addresses import public_name
from a2mim.data.remote.retry import PassingFault
from a2mim.data.remote.transfer import BLOCK, Stat, Watch, append

_NO_COMMAND = (126, 127)  # the shell's status for: cannot be run, not found
_SHOWN = 200  # characters of a failed command's message


class Pipe:
    """One command. The size of its output is unknown before it ends, and no part of it can be read alone."""

    ranges = False

    def __init__(self, address: str, access: Access):
        self.name, self.command = public_name(address), address.removeprefix("pipe:")
        self.timeout = access.timeout
        if not access.allow_pipe:
            raise ValueError(f"{self.name!r} would run a command in a shell; add --allow-pipe if you trust it")

    def stat(self) -> Stat:
        return Stat()

    def download(self, file: BinaryIO) -> None:
        """Runs the command from the start, because its output may differ from an earlier one."""
        file.seek(0)
        file.truncate()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.command, shell=True, stdout=subprocess.PIPE, stderr=said, start_new_session=True
            )
            try:
                append(file, lambda: self._next(process.stdout), Watch(self.name, self.timeout))
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise PassingFault(f"{self.name}: closed its output and did not end") from None
            finally:
                _stop(process)
            if status:
                said.seek(0)
                words = " ".join(said.read().decode(errors="replace").split())[-_SHOWN:]
                fault = ShardError if status in _NO_COMMAND else PassingFault
                said_too = f": {public_name(words)}" if words else ""
                raise fault(f"{self.name}: the command ended with status {status}{said_too}")

    def read(self, offset: int, size: int) -> bytes:
        raise ShardError(f"{self.name}: the output of a command has no byte ranges; fetch whole shards")

    def _next(self, output) -> bytes:
        if not select.select([output], [], [], self.timeout)[0]:
            raise PassingFault(f"{self.name}: no byte in {self.timeout:g} s")
        return os.read(output.fileno(), BLOCK)


def _stop(process: subprocess.Popen) -> None:
    """Kills the command and all processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None  # opened with a pipe
    process.stdout.close()
