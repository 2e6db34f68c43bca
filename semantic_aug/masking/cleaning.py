"""From a model's prediction for each pixel to a mask: refined edges, one piece, no small holes.

All functions are pure. A mask is bool [H, W] here, True on the object.
"""

import numpy as np
from scipy import ndimage

EDGE_EPS = 1e-4  # of the guided filter: a smaller variance of grey values in [0, 1] is no edge
REFINED_AT = 1024  # pixels: longer photos are subsampled to at most this for the guided filter

_EIGHT = np.ones((3, 3), bool)  # diagonal neighbours are connected too


def enlarged(shares: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `shares` bilinearly from a model's grid to the pixels of its photo.

    Args:
        shares: [h, w], float32 in [0, 1]; of the whole photo, on a grid of any shape.
        size: (width, height) of the photo.

    Returns:
        [H, W], float32 in [0, 1].
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
    """Make the edges of `shares` follow the photo's edges, by a guided filter (He et al., 2010).

    Args:
        shares: [H, W], float32 in [0, 1].
        photo: [H, W, 3] uint8.
        radius: of the filter's window, in pixels; 0 leaves `shares` unchanged.

    Returns:
        [H, W], float32; slightly outside of [0, 1] at strong edges.
    """
    import torch
    from kornia.filters import guided_blur

    height, width = shares.shape
    subsample = -(-max(height, width) // REFINED_AT)
    # The mirrored borders must fit into the subsampled photo.
    radius = min(radius, (min(height, width) // subsample - 1) * subsample)
    if radius < 1:
        return shares
    grey = torch.from_numpy(np.array(photo)).float().mean(dim=2)[None, None] / 255
    tensor = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32))[None, None]
    return guided_blur(grey, tensor, 2 * radius + 1, EDGE_EPS, subsample=subsample)[0, 0].numpy()


def pieces_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected pieces of a mask; diagonal neighbours are connected.

    Returns:
        The number of each pixel's piece, [H, W], 0 outside; and the pieces' areas in pixels,
        piece 1 first.
    """
    labels, _ = ndimage.label(mask, _EIGHT)
    return labels, np.bincount(labels.ravel())[1:]


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask, if any; of equal pieces, the first from the top."""
    labels, areas = pieces_of(mask)
    if areas.size == 0:
        return mask.copy()
    return labels == 1 + int(np.argmax(areas))


def without_holes(mask: np.ndarray, share: float) -> np.ndarray:
    """The mask with its small holes filled.

    A hole is a region that the object shuts off from the photo's borders. Pixels of the object that
    touch only diagonally shut a hole too.

    Args:
        share: size of the largest hole that is filled, as a share of the object's area, in [0, 1].
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
    """A mask from a model's prediction, and the largest piece's share of the found area.

    Args:
        shares: [h, w], float32 in [0, 1], above 0.5 on the object; of the whole photo, on a grid of
            any shape.
        photo: [H, W, 3] uint8.
        keep_pieces: keep all connected pieces, not only the largest piece.
        fill_holes: see `without_holes`.
        raw_edges: do not refine the edges by the photo.
        grid: (h, w) of the model's output, if `shares` are enlarged already.

    Returns:
        The mask, bool [H, W]; and the largest piece's share, in [0, 1], 0 if nothing was found.
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
