"""Time, memory and energy on this machine."""
