"""Recipe, loop, checkpoint, schedule, metrics."""
