"""From what a model says of each pixel to a mask: refined edges, one piece, no small holes.

Pure functions on arrays. A mask is bool [H, W] here, True on the object.
"""

import numpy as np
from scipy import ndimage

EDGE_EPS = 1e-4  # of the guided filter: grey values in [0, 1] that vary less are no edge
REFINED_AT = 1024  # pixels of the longer side at which the guided filter looks at a photo

_EIGHT = np.ones((3, 3), bool)  # neighbours of a pixel, diagonal ones too


def enlarged(shares: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`shares`, float32 in [0, 1] on a model's own grid, on the pixels of its photo.

    Args:
        shares: [h, w] of the whole photo, whatever the grid's own shape.
        size: (width, height) of the photo.

    Returns:
        [H, W], float32 in [0, 1], bilinear.
    """
    import torch

    width, height = size
    if shares.shape == (height, width):
        return shares.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32))[None, None]
    smaller = height < shares.shape[0] or width < shares.shape[1]
    resized = torch.nn.functional.interpolate(
        tensor, (height, width), mode="bilinear", antialias=smaller
    )
    return resized[0, 0].clamp(0, 1).numpy()


def refined(shares: np.ndarray, photo: np.ndarray, radius: int) -> np.ndarray:
    """`shares` whose edges follow the photo's edges: a guided filter (He et al., 2010).

    Args:
        shares: [H, W], float32 in [0, 1].
        photo: [H, W, 3] uint8.
        radius: of the filter's window, in pixels; 0 leaves `shares` as they are.

    Returns:
        [H, W], float32; a little beyond [0, 1] at strong edges.
    """
    import torch
    from kornia.filters import guided_blur

    height, width = shares.shape
    subsample = -(-max(height, width) // REFINED_AT)
    # Mirrored borders must fit into what the filter looks at.
    radius = min(radius, (min(height, width) // subsample - 1) * subsample)
    if radius < 1:
        return shares
    grey = torch.from_numpy(np.array(photo)).float().mean(dim=2)[None, None] / 255
    tensor = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32))[None, None]
    return guided_blur(grey, tensor, 2 * radius + 1, EDGE_EPS, subsample=subsample)[0, 0].numpy()


def pieces_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected pieces, diagonal neighbours included.

    Returns:
        The number of each pixel's piece, [H, W], 0 outside; and the pieces' areas in pixels,
        piece 1 first.
    """
    labels, _ = ndimage.label(mask, _EIGHT)
    return labels, np.bincount(labels.ravel())[1:]


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece alone; of equal ones the first from the top. Empty stays so."""
    labels, areas = pieces_of(mask)
    if areas.size == 0:
        return mask.copy()
    return labels == 1 + int(np.argmax(areas))


def without_holes(mask: np.ndarray, share: float) -> np.ndarray:
    """The mask with its small holes filled.

    A hole is a region that the object shuts off from the photo's borders; diagonal gaps shut too.

    Args:
        share: holes are filled up to this share of the object's area, in [0, 1].
    """
    labels, number = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    if number == 0:
        return mask.copy()
    areas = np.bincount(labels.ravel())
    small = areas <= share * mask.sum()
    small[0] = False
    return mask | small[labels]


def cleaned(
    shares: np.ndarray,
    photo: np.ndarray,
    *,
    keep_pieces: bool = False,
    fill_holes: float = 0.02,
    raw_edges: bool = False,
    grid: tuple[int, int] | None = None,
) -> tuple[np.ndarray, float]:
    """A mask from what a model says, and how much of what it found the largest piece holds.

    Args:
        shares: [h, w], float32 in [0, 1], above 0.5 on the object; of the whole photo, on a grid of
            any shape.
        photo: [H, W, 3] uint8.
        keep_pieces: keep all connected pieces, not the largest alone.
        fill_holes: see `without_holes`.
        raw_edges: do not refine edges by the photo.
        grid: (h, w) of what the model said, where `shares` are enlarged already.

    Returns:
        The mask, bool [H, W]; and the largest piece's share, in (0, 1], 0 where nothing was found.
    """
    height, width = photo.shape[:2]
    whole = enlarged(shares, (width, height))
    if not raw_edges:  # an edge lies within half a cell of the model's grid
        rows, columns = grid or shares.shape
        cell = max(height / rows, width / columns)
        whole = refined(whole, photo, max(1, round(cell / 2)) if cell > 1 else 0)
    mask = whole > 0.5
    found = int(mask.sum())
    largest = largest_piece(mask)
    held = int(largest.sum()) / found if found else 0.0
    return without_holes(mask if keep_pieces else largest, fill_holes), held
