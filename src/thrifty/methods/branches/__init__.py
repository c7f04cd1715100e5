"""What stands beside a frozen operation, and the places where it can stand."""
