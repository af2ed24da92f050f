"""`samadapt serve`: trained runs behind HTTP, with a page for people. Nothing else knows this package: it can be deleted.

`options` and `names` need no torch, so that the command line can read them; `door.serve` loads the rest.
"""
