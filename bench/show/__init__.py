"""How it is shown and compared: tables, pages, ``--compare``."""
