"""What runs leave in a folder and read back: plan.json, grids.json, digests, checkpoints, and how they are staged."""
