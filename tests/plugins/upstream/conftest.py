"""`house`: a started gateway; `forward`: one that forwards."""

from upstream_house import forward

from gateway_house import house, tokenizer_folder

__all__ = ["forward", "house", "tokenizer_folder"]
