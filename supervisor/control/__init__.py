"""The server's side of the socket: who may ask what, and what is answered.

One module for each topic exports its `ROUTES`; `control.table` lists them all.  `routes` has the
types, `server` the socket, `http` one client's connection.

May import: everything above `front`; h11 in `control.http` alone.
"""
