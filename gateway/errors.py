"""Everything that can go wrong, by what happened. Which status a client sees: transport/status.py.

TidegateError
 +- StartError              the gateway cannot start as it was told to
 +- RepositoryError         a model's files are not what they should be
 +- InvalidRequest          the request contradicts itself or its model
 |   +- RequestTooLarge     has more bytes than the gateway takes
 +- NotSupported            asks for something this gateway does not do
 +- NotAllowed              asks for something that is closed to clients
 +- NotFound                no such thing (a shared memory region, say)
 +- AlreadyExists           there is such a thing already
 +- ModelNotFound           no such model or version in the repository
 +- ModelUnavailable        known, but cannot be made ready
 +- LoadFailed              an explicit load did not succeed
 +- Overloaded              the gateway's own bound is reached
 +- QueueFull               the model's queue policy refuses one more
 +- QueueTimeout            waited longer than the model's queue policy allows
 +- DeadlineExceeded        the caller's deadline has passed
 +- InferenceFailed         the engine failed, or answered nonsense
 |   +- RequestRefused      the engine itself finds fault with the request
 +- EngineUnavailable       the engine's server cannot be reached
 +- ModelLost               the engine has not the model any more
 +- EngineStalled           the engine has not answered for too long
 +- ShuttingDown            the gateway is draining
"""


class TidegateError(Exception):
    """The root: its text is a sentence for whoever asked."""


class StartError(TidegateError):
    """The gateway cannot start as it was told to."""


class RepositoryError(TidegateError):
    """A model's files are not what they should be."""


class InvalidRequest(TidegateError):
    """The request contradicts itself or its model."""


class RequestTooLarge(InvalidRequest):
    """The request has more bytes than the gateway takes."""


class NotSupported(TidegateError):
    """The request asks for something that this gateway does not do."""


class NotAllowed(TidegateError):
    """The request asks for something that whoever runs the gateway keeps closed to clients."""


class NotFound(TidegateError):
    """There is no such thing."""


class AlreadyExists(TidegateError):
    """There is such a thing already."""


class ModelNotFound(TidegateError):
    """There is no such model or version in the repository."""


class ModelUnavailable(TidegateError):
    """The model is known but cannot be made ready."""


class LoadFailed(TidegateError):
    """An explicit load did not succeed."""


class Overloaded(TidegateError):
    """The gateway's own bound on requests in flight is reached."""


class QueueFull(TidegateError):
    """The model's queue policy refuses one more request."""


class QueueTimeout(TidegateError):
    """The request waited longer than the model's queue policy allows."""


class DeadlineExceeded(TidegateError):
    """The caller's deadline has passed."""


class InferenceFailed(TidegateError):
    """The engine failed, or its answer does not fit the batch."""


class RequestRefused(InferenceFailed):
    """The engine itself finds fault with the request."""


class EngineUnavailable(TidegateError):
    """The engine is a server, and cannot be reached."""


class ModelLost(TidegateError):
    """The engine has the model no more: its server has restarted, or somebody unloaded it."""


class EngineStalled(TidegateError):
    """The engine has not answered a batch within the time that it is given."""


class ShuttingDown(TidegateError):
    """The gateway is draining and takes no more work."""
