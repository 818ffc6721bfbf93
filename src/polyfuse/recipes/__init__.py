"""Recipes: what a run is, written down. Read, check, run; the shipped ones are beside this file."""
