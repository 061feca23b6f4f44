"""How gRPC's core is set up in this process. To be called before gRPC is first imported."""

from __future__ import annotations

import os

# gRPC's newer I/O layer (the "event engine") hands every read to threads of its own: two thread
# switches more for each message. With the older one the thread that waits for events reads the
# sockets itself, which on two cores makes a bare grpc.aio server 1.2 times as fast.
# (docs/adr/0004, benchmarks/NOTES.md)
EXPERIMENTS = "-event_engine_listener,-event_engine_client"


def choose_io_layer() -> None:
    """Have gRPC poll its sockets in the thread that waits for them, unless the user chose."""
    os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
