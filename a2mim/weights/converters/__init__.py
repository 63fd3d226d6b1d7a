"""Weights of other toolkits, under timm's names."""

from a2mim.weights.converters.arguments import arguments_of, on_meta
from a2mim.weights.converters.recognise import Recognised, read_weights, recognise
from a2mim.weights.converters.transformers_folder import architecture_of, pixels_of

__all__ = ["Recognised", "architecture_of", "arguments_of", "on_meta", "pixels_of", "read_weights", "recognise"]
