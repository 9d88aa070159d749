"""Tensors: the subject model, sparse coders, the corpus, extraction and intervention."""
