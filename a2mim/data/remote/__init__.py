"""Where bytes come from when they are not in a local file: http(s), object stores, the output of a command."""
