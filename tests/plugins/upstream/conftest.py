"""`house`: a started gateway."""

from gateway_house import house, tokenizer_folder

__all__ = ["house", "tokenizer_folder"]
