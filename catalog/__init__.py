"""Model names -> files on disk: found, fetched, converted, weighed. Nothing here knows mlx."""
