"""A stop request that is set at a chosen time."""

from wsi_idc.runtime.signals import StopRequest


class StopAfter(StopRequest):
    """Stop request that is set after it has been read ``num_looks`` times."""

    def __init__(self, num_looks: int) -> None:
        super().__init__()
        self.num_looks = num_looks

    def __bool__(self) -> bool:
        self.num_looks -= 1
        self.signal_name = "SIGTERM"
        return self.num_looks < 0
