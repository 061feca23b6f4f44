"""What happened -> what a gRPC client sees. The one table."""

from __future__ import annotations

from grpc import StatusCode

from gateway import errors

STATUS: dict[type[errors.TidegateError], StatusCode] = {
    errors.StartError: StatusCode.FAILED_PRECONDITION,
    errors.RepositoryError: StatusCode.FAILED_PRECONDITION,
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
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
