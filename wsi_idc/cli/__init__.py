"""Commands of ``wsi-idc``: each command parses its options and prints its result."""
