"""Images, from where they are to uint8 batches in an order that resumes exactly. Knows no model.

The names are resolved when first used: listing a folder must not cost an import of torch.
"""

from importlib import import_module

_PUBLIC = {
    "ImageDataset": "a2mim.data.dataset",
    "open_dataset": "a2mim.data.sources",
    "open_stream": "a2mim.data.streams",
    "Access": "a2mim.data.access",
    "Reading": "a2mim.data.reading",
    "ShardError": "a2mim.data.errors",
    "match_labels": "a2mim.data.class_names",
    "TrainLoader": "a2mim.data.loader",
    "EvalLoader": "a2mim.data.loader",
    "StreamLoader": "a2mim.data.streams",
    "make_shards": "a2mim.data.prepare.write_shards",
    "check_shards": "a2mim.data.prepare.check",
}
__all__ = [
    "Access",
    "EvalLoader",
    "ImageDataset",
    "Reading",
    "ShardError",
    "StreamLoader",
    "TrainLoader",
    "check_shards",
    "make_shards",
    "match_labels",
    "open_dataset",
    "open_stream",
]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'a2mim.data' has no attribute {name!r}")
