"""Texts: their tokeniser, what a model sees of them, and data modules of them."""
