"""A bare grpc.aio server on uvloop: the most that Python's gRPC can do with these messages.

It parses every ModelInferRequest with the real stubs and answers one ModelInferResponse made
beforehand, read (serialised) from the file given: nothing is computed, batched or checked.
Prints its port once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import grpc
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, response: service_pb2.ModelInferResponse) -> None:
        self._response = response

    async def ServerReady(
        self,
        request: service_pb2.ServerReadyRequest,
        context: grpc.aio.ServicerContext[
            service_pb2.ServerReadyRequest, service_pb2.ServerReadyResponse
        ],
    ) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelInfer(
        self,
        request: service_pb2.ModelInferRequest,
        context: grpc.aio.ServicerContext[
            service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
        ],
    ) -> service_pb2.ModelInferResponse:
        return self._response


async def serve(port: int, response: service_pb2.ModelInferResponse) -> None:
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(response), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(bound, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--response", type=Path, required=True, help="a serialised response")
    options = parser.parse_args()
    response = service_pb2.ModelInferResponse.FromString(options.response.read_bytes())
    uvloop.run(serve(options.port, response))


if __name__ == "__main__":
    main()
