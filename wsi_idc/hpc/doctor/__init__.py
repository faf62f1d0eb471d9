"""What a machine is like, as far as this program minds: a page for a bug report."""
