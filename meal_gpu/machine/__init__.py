"""What this machine is and what a run will use of it: processors, memory, device, libraries.

Stands on the kernels and the modules at the root alone.
"""
