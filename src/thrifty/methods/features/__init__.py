"""What a frozen network sees in a picture: where it is given it, its features from one place or everywhere, and heads on them."""
