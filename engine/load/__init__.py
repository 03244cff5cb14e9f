"""From a model's files to weights in memory."""
