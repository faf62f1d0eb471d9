"""``wsi-idc eval`` and ``compare``: evaluations, comparisons, leaderboards and their pages."""
