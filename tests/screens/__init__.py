"""Pictures of every screen, taken from the running program on two real hosts."""
