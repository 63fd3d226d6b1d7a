"""How hidden cells are kept from a network other than by a token: left out of the sequence, or held at 0.

Invariant: the network keeps its own keys, and without a mask it computes what it computed before, bit for bit.
"""

from a2mim.wiring.hiding.drop import Dropping
from a2mim.wiring.hiding.mask_check import check_cells, check_counts, check_shape
from a2mim.wiring.hiding.proof import hiding_faults, leak_of
from a2mim.wiring.hiding.sparse import Sparse

HIDING = ("token", "drop", "sparse")

__all__ = [
    "HIDING",
    "Dropping",
    "Sparse",
    "check_cells",
    "check_counts",
    "check_shape",
    "hiding_faults",
    "leak_of",
]
