"""The verbs that speak to a running instance, by its socket: one module each.

A module has `configure(verb)`, which adds its flags and sets the deed.  All start fast: nothing
here imports trio, cattrs or what is in `control`.

May import: `errors`, `model`, `front`.
"""
