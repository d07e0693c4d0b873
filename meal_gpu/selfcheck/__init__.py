"""`meal-gpu selfcheck`: every backend of this machine against its reference.

Stands on `engine` and all below it. `runner` runs what `checks` and `checks_network` hold; `outcome` is what they find.
"""
