"""Weights on disk, one format a file."""
