"""A KServe v2 gRPC endpoint: how it is reached, and what it says about a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

MAX_MESSAGE_BYTES = 2**31 - 1


class EndpointError(Exception):
    """The endpoint cannot be load-tested; the text is one sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the endpoint says about the model under test."""

    metadata: service_pb2.ModelMetadataResponse
    config: model_config_pb2.ModelConfig


def open_channel(host: str) -> grpc.Channel:
    """Return a channel with a connection of its own to `host` ("address:port")."""
    return grpc.insecure_channel(
        host,
        options=[
            # Channels with equal options share one connection otherwise.
            ("grpc.use_local_subchannel_pool", 1),
            # A proxy from the environment would be measured along with the server.
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ],
    )


def describe(channel: grpc.Channel, host: str, model: str, version: str, timeout_s: float) -> Model:
    """Return the model's metadata and config, asked from the endpoint.

    Raises `EndpointError` if nobody answers, or the model is not there.
    """
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        metadata = stub.ModelMetadata(
            service_pb2.ModelMetadataRequest(name=model, version=version), timeout=timeout_s
        )
        config = stub.ModelConfig(
            service_pb2.ModelConfigRequest(name=model, version=version), timeout=timeout_s
        )
    except grpc.RpcError as error:
        raise EndpointError(sentence(error, host, model)) from None
    return Model(metadata, config.config)


def first_answer(
    channel: grpc.Channel, host: str, request: service_pb2.ModelInferRequest, timeout_s: float
) -> tuple[service_pb2.ModelInferResponse, float]:
    """Return the answer to one request and the seconds it took, a cold start included.

    Raises `EndpointError`.
    """
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    started = time.perf_counter()
    try:
        response = stub.ModelInfer(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise EndpointError(sentence(error, host, request.model_name)) from None
    return response, time.perf_counter() - started


def sentence(error: grpc.RpcError, host: str, model: str) -> str:
    """Return what a failed call means to the person who started the test."""
    code, details = status_of(error)
    if code == "UNAVAILABLE":
        return f"no KServe v2 gRPC server answers at {host} ({details})"
    if code == "NOT_FOUND":
        return f"the server at {host} has no model '{model}' to test: {details}"
    return f"the server at {host} answered {code} for model '{model}': {details}"


def status_of(error: grpc.RpcError) -> tuple[str, str]:
    """Return a failed call's gRPC status ("UNAVAILABLE") and its text."""
    call: Any = error  # whatever a stub raises is a grpc.Call as well
    return call.code().name, call.details() or ""
