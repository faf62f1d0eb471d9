"""Modules that all other packages use, such as errors, file access, locks and progress bars."""
