"""Instructions in this library's own words, ten of each kind."""
