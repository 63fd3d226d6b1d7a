"""Weights of other toolkits, renamed to timm's keys."""

from a2mim.weights.converters.arguments import arguments_of, place_norm
from a2mim.weights.converters.recognise import Recognised, read_weights, recognise
from a2mim.weights.converters.transformers_folder import architecture_of, pixels_of

__all__ = ["Recognised", "architecture_of", "arguments_of", "pixels_of", "place_norm", "read_weights", "recognise"]
