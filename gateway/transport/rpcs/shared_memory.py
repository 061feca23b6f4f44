"""SystemSharedMemory* and CudaSharedMemory*: register, list and forget regions."""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as pb

from gateway.errors import NotFound
from gateway.transport.cuda_memory import CudaRegion
from gateway.transport.shared_memory import AnyRegion, SharedMemory, SystemRegion


class SharedMemoryRpcs:
    """The regions that clients name instead of sending contents."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    async def SystemSharedMemoryStatus(
        self, message: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Describe one region, or all."""
        status = pb.SystemSharedMemoryStatusResponse()
        for region in _asked_for(self._memory.of_kind(SystemRegion), message.name, "system"):
            status.regions[region.name].CopyFrom(
                pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.size
                )
            )
        return status

    async def SystemSharedMemoryRegister(
        self, message: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Open a region."""
        self._memory.check_free(message.name)
        self._memory.add(SystemRegion(message.name, message.key, message.offset, message.byte_size))
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, message: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget one region, or all; an unknown one is no error."""
        self._memory.remove(SystemRegion, message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, message: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Describe one region, or all."""
        status = pb.CudaSharedMemoryStatusResponse()
        for region in _asked_for(self._memory.of_kind(CudaRegion), message.name, "cuda"):
            status.regions[region.name].CopyFrom(
                pb.CudaSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, device_id=region.device, byte_size=region.size
                )
            )
        return status

    async def CudaSharedMemoryRegister(
        self, message: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Open a region of a GPU's memory."""
        self._memory.check_free(message.name)
        self._memory.add(
            CudaRegion(message.name, message.raw_handle, message.device_id, message.byte_size)
        )
        return pb.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(
        self, message: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Forget one region, or all; an unknown one is no error."""
        self._memory.remove(CudaRegion, message.name)
        return pb.CudaSharedMemoryUnregisterResponse()


def _asked_for(regions: dict[str, AnyRegion], name: str, kind: str) -> list[AnyRegion]:
    if not name:
        return list(regions.values())
    if name not in regions:
        raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")
    return [regions[name]]
