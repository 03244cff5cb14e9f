"""GGUF files, converted without loss to the files that mlx-lm loads."""
