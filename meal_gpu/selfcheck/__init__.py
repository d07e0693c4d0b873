"""`meal-gpu selfcheck`: every backend of this machine against its reference.

Stands on everything but the command line.
"""
