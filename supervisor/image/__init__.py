"""Images: what a reference names, the store of layers that jobs share, and what fills it.

May import: `errors`, `model`, `linux`, trio; httpx in `registry` alone.  What is read here was
written by strangers: nothing of it is used before its digest, size and form have been checked.
"""
