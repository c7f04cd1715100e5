"""What a frozen image-text model makes of a few labelled pictures, and how settings are chosen on few."""
