"""``wsi-idc eval`` and ``compare``: evaluation, comparison, leaderboard and their pages."""
