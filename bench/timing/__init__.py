"""How it is measured: interleaved timing, memory, and the roofs of the machine.

Nothing of the benchmark stands below it.
"""
