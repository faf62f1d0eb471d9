"""Read, check, pack, split and synthesise patches."""
