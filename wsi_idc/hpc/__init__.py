"""What a run on a shared cluster needs to know about its surroundings."""
