"""Readers of text as people have it, one a kind of file: each gives the documents of a :class:`CorpusFile`. Torch-free."""
