"""How it is shown and compared: tables, pages, ``--compare``.

Stands on `bench.result`; nothing is measured here.
"""
