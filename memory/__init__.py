"""Memory: what the system says, what level that is, what fits. Pure but for ``sources``."""
