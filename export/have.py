"""What this machine has for an export."""

from export import machine, preflight, tensorrt_engine
from export.errors import AbsentError
from export.formats import Have
from export.spec import Target


def here(target: Target | None) -> Have:
    """What there is here; raises `AbsentError` where the target is a GPU that nobody can use."""
    no_cuda = machine.no_cuda_provider()
    if target == "gpu" and no_cuda:
        raise AbsentError(f"the target is a GPU: {no_cuda}", "export for the CPU: --target cpu")
    return Have(
        target=target or ("cpu" if no_cuda else "gpu"),
        no_cuda=no_cuda,
        no_tensorrt=tensorrt_engine.absent(),
        no_preflight=preflight.absent(),
        capability=machine.compute_capability(),
    )
