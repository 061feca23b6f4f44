"""A bare tritonserver on one model of a repository, started as `tidegate serve` starts its own.

Prints one JSON object, `address` and `metrics_url`, once the model is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

if not __package__:  # run as a file: put the repository where benchmarks/ alone would be
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gateway.engine import tritonserver
from gateway.engine.process import TritonProcess

LOAD_WITHIN_S = 60.0


async def serve(installation: tritonserver.Installation, repository: Path, model: str) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = TritonProcess(installation, repository)
    try:
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.RepositoryModelLoadRequest(model_name=model)
            await stub.RepositoryModelLoad(request, timeout=LOAD_WITHIN_S)
        told = {
            "address": server.address,
            "metrics_url": server.metrics_url,
            "http_address": server.http_address,
        }
        print(json.dumps(told), flush=True)
        ended, stopped = asyncio.create_task(server.wait()), asyncio.create_task(stop.wait())
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            print(f"tritonserver ended with {ended.result()}", flush=True)
        stopped.cancel()
    finally:
        await server.stop()


def main() -> None:
    """Find the installation, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, required=True, help="what `make triton` made")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("gateway.engine.process").setLevel(logging.DEBUG)  # what tritonserver says
    installation = tritonserver.find(options.env)
    asyncio.run(serve(installation, options.repository, options.model))


if __name__ == "__main__":
    main()
