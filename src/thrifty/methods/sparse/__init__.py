"""Changes of single weights: which of them, and how they are kept."""
