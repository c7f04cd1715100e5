"""What training and storing must hold: activations that are not kept, a model of their bytes, weights of few values."""
