"""Is the search worth it: a recorded grid of real runs, and the study's own code replayed on it."""
