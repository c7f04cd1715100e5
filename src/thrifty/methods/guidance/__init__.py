"""What a network learns from beside its labels: a teacher, the network that it was, a second view, a method around another."""
