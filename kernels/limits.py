"""What the kernels take, and how many blocks their rows are dealt to."""

from __future__ import annotations

from functools import cache

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CUDA_PACK = 8  # neighbouring elements, which a thread loads at once
CUDA_MAX_WIDTH = 8192  # of a row in the registers of a block of threads
BLOCKS_PER_PROCESSOR = 2  # where each block writes sums, which are added up afterwards
FORWARD_BLOCKS_PER_PROCESSOR = 16  # where blocks write nothing but their rows
CPU_BLOCK_ROWS, CPU_MAX_BLOCKS = 32, 256
EMULATOR_BLOCKS = 4  # few: each of its threads then has several rows, as on a GPU


def cpu_limit(width: int, types: tuple[torch.dtype, ...]) -> str | None:
    """Why a CPU's kernels do not take rows of this width and tensors of these types; None where they do."""
    return next((f"{dtype} is for the reference" for dtype in types if dtype not in FLOATS), None)


def pack_limit(width: int, types: tuple[torch.dtype, ...]) -> str | None:
    """The same of a GPU's kernels that see no row as a whole."""
    return f"width {width} is no multiple of {CUDA_PACK}" if width % CUDA_PACK else cpu_limit(width, types)


def row_limit(width: int, types: tuple[torch.dtype, ...]) -> str | None:
    """The same of a GPU's kernels that keep a row in registers."""
    if width % CUDA_PACK or not 0 < width <= CUDA_MAX_WIDTH:
        return f"width {width} is no multiple of {CUDA_PACK} up to {CUDA_MAX_WIDTH}"
    return cpu_limit(width, types)


def row_blocks(backend: str, device: torch.device, rows: int, per_processor: int = BLOCKS_PER_PROCESSOR) -> int:
    """Blocks that rows are dealt to: fixed for a device and a size, so that sums have the same bits every time."""
    rows = max(1, rows)
    if backend == "cpu":
        return min(max(1, rows // CPU_BLOCK_ROWS), CPU_MAX_BLOCKS)
    if backend == "emulator":
        return min(rows, EMULATOR_BLOCKS)
    return min(rows, per_processor * processors(device))


@cache
def processors(device: torch.device) -> int:
    """A GPU's multiprocessors."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
