"""Twisted Sequential Monte Carlo on language models, made visible."""
