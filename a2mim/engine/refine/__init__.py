"""Refinement of a pre-trained encoder: two crops of an image must find one another among the others' neighbours."""

from a2mim.engine.refine.heads import Head, Queue
from a2mim.engine.refine.refiner import Refiner

__all__ = ["Head", "Queue", "Refiner"]
