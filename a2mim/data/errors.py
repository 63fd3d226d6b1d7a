"""Three classes of faults, never turned into one another.

A sample is at fault (`UnreadableImage`, decode.py): it is replaced or left out, and counted. A shard is at fault
(`ShardError`): the run ends, or goes on without the shard where the user chose that. The request is at fault
(ValueError, FileNotFoundError): nothing begins.
"""


class ShardError(OSError):
    """A whole shard cannot be used; the message has its path or URL and what is wrong."""
