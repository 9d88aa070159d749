"""Readers of sparse coders on disk: each fills in the parts of a :class:`sae_core.coder.SparseCoder`."""
