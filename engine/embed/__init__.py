"""The engine of embedding models: texts in, vectors out."""
