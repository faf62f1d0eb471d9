"""Drawn tissue: a synthetic cohort and a synthetic slide."""
