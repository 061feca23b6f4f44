"""What happened -> what a client sees: the status of gRPC, the code of HTTP. The one table."""

from __future__ import annotations

from grpc import StatusCode

from gateway import errors

STATUS: dict[type[errors.TidegateError], StatusCode] = {
    errors.StartError: StatusCode.FAILED_PRECONDITION,
    errors.RepositoryError: StatusCode.FAILED_PRECONDITION,
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.RequestTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.NotSupported: StatusCode.UNIMPLEMENTED,
    errors.NotAllowed: StatusCode.UNAVAILABLE,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.ModelUnavailable: StatusCode.UNAVAILABLE,
    errors.LoadFailed: StatusCode.INTERNAL,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.QueueFull: StatusCode.UNAVAILABLE,
    errors.QueueTimeout: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.InferenceFailed: StatusCode.INTERNAL,
    errors.RequestRefused: StatusCode.INVALID_ARGUMENT,
    errors.EngineUnavailable: StatusCode.UNAVAILABLE,
    errors.ModelLost: StatusCode.UNAVAILABLE,
    errors.EngineStalled: StatusCode.INTERNAL,
    errors.ShuttingDown: StatusCode.UNAVAILABLE,
}

# as Triton has them, and for what it never says as proxies and clients expect: the client may ask
# again after 429 and 503
_HTTP_CODE = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 400,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
HTTP_CODE: dict[type[errors.TidegateError], int] = {
    **{error: _HTTP_CODE[status] for error, status in STATUS.items()},
    errors.RequestTooLarge: 413,
}
