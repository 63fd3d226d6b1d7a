"""Sources of bytes that are not local files: http(s), object stores, the output of a command."""
