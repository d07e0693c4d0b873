"""How: interleaved timing, memory, and the roofs of the machine."""
