"""How much of a network runs for one example: exits, blocks that are left out, the gates that decide, and what it saves."""
