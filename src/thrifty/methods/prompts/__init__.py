"""Learned vectors among the tokens of a text, of a picture, or of a class's sentence, and what keeps them from showing outside."""
