"""``make demo``: the product's main job, for real, in one command."""
