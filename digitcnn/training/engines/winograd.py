"""Winograd convolution, ReLU and 2x2 max-pool as one block of matrix products, forward and backward.

A block of 3x3 kernels is Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308): its tile of 2x2 outputs is
exactly one pooling window, so the window's maximum replaces the tile, and nothing that pooling drops is computed.
Cutting the input into overlapping tiles, and the gradient of that, are matrix products too, because XLA's CPU code for
slices, pads and reshapes runs one element at a time. The first block (one channel) and other kernel sizes multiply the
untransformed tiles. Bias and ReLU come after the maximum: they commute with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any
Array = np.ndarray[Any, Any]

# Winograd F(2, 3): input, output and kernel transforms along one axis.
INPUT_TRANSFORM = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
OUTPUT_TRANSFORM = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Block:
    """Convolution, ReLU, 2x2 max-pool. Pairs are (outer, inner) axis; these swap from block to block."""

    kernel: tuple[int, int]
    size: tuple[int, int]  # of the input, cropped to what the kept outputs need
    out: tuple[int, int]  # pooled positions that a later layer uses
    channels: int
    filters: int
    swapped: bool  # outer axis is the image's width

    @property
    def winograd(self) -> bool:
        return self.kernel == (3, 3) and self.channels > 1

    @property
    def tiles(self) -> int:
        return self.out[0] * self.out[1]

    @property
    def phases(self) -> list[tuple[int, int]]:
        """Offsets in the window, row-major in the image: the first of equal values wins, as in Keras."""
        return [(0, 0), (1, 0), (0, 1), (1, 1)] if self.swapped else [(0, 0), (0, 1), (1, 0), (1, 1)]


def _axis_matrix(block: Block, axis: int) -> Array:
    """Return the matrix (tap and tile, size) that cuts an axis into tiles, kernel + 1 wide and 2 apart, transformed."""
    taps, tiles, size = block.kernel[axis] + 1, block.out[axis], block.size[axis]
    matrix = np.zeros((taps, tiles, size), np.float32)
    for tap in range(taps):
        matrix[tap, np.arange(tiles), 2 * np.arange(tiles) + tap] = 1
    if block.winograd:
        matrix = np.einsum("pi,its->pts", INPUT_TRANSFORM, matrix)
    return np.ascontiguousarray(matrix.reshape(taps * tiles, size))


def _cut(x: Tensor, block: Block) -> Tensor:
    """Return activations (outer, inner, n) as tiles (outer tap * inner tap, inner tile * outer tile * n)."""
    taps, tiles, (outer, inner), n = block.kernel[0] + 1, block.out[0], block.size, x.shape[2]
    x = tf.matmul(_axis_matrix(block, 0), tf.reshape(x, (outer, inner * n)))
    x = tf.reshape(tf.transpose(tf.reshape(x, (taps, tiles, inner, n)), (0, 2, 1, 3)), (taps, inner, tiles * n))
    x = tf.matmul(np.stack([_axis_matrix(block, 1)] * taps), x)
    return tf.reshape(x, (taps * (block.kernel[1] + 1), block.tiles * n))


def _uncut(gradient: Tensor, block: Block, n: int) -> Tensor:
    """Apply the transpose of `_cut`: the gradient of every tile, added where tiles overlap, as (outer, inner, n)."""
    taps, tiles, (outer, inner) = block.kernel[0] + 1, block.out[0], block.size
    x = tf.reshape(gradient, (taps, -1, tiles * n))
    x = tf.matmul(np.stack([np.ascontiguousarray(_axis_matrix(block, 1).T)] * taps), x)
    x = tf.reshape(tf.transpose(tf.reshape(x, (taps, inner, tiles, n)), (0, 2, 1, 3)), (taps * tiles, inner * n))
    return tf.reshape(tf.matmul(np.ascontiguousarray(_axis_matrix(block, 0).T), x), (outer, inner, n))


def _output_matrix(block: Block) -> Array:
    """Return Winograd's output transform (4 phases, 16), phases in the block's order."""
    order = [2 * outer + inner for outer, inner in block.phases]
    return np.ascontiguousarray(np.kron(OUTPUT_TRANSFORM, OUTPUT_TRANSFORM)[order])


def factor(kernel: Tensor, block: Block) -> Tensor:
    """Return the kernel as a factor: (16, channels, filters) or (taps * channels, 4 phases * filters)."""
    kernel = tf.transpose(kernel, (1, 0, 2, 3)) if block.swapped else kernel
    if block.winograd:
        product = tf.matmul(np.kron(KERNEL_TRANSFORM, KERNEL_TRANSFORM), tf.reshape(kernel, (9, -1)))
        return tf.reshape(product, (16, block.channels, block.filters))
    padded = [tf.pad(kernel, ((a, 1 - a), (b, 1 - b), (0, 0), (0, 0))) for a, b in block.phases]
    return tf.concat([tf.reshape(part, (-1, block.filters)) for part in padded], 1)


def kernel_gradient(gradient: Tensor, block: Block) -> Tensor:
    """Apply the transpose of `factor`."""
    outer, inner = block.kernel
    if block.winograd:
        transform = np.ascontiguousarray(np.kron(KERNEL_TRANSFORM, KERNEL_TRANSFORM).T)
        kernel = tf.reshape(tf.matmul(transform, tf.reshape(gradient, (16, -1))), (3, 3, block.channels, block.filters))
    else:
        parts = tf.reshape(gradient, (outer + 1, inner + 1, block.channels, 4, block.filters))
        kernel = tf.add_n([parts[a : a + outer, b : b + inner, :, n] for n, (a, b) in enumerate(block.phases)])
    return tf.transpose(kernel, (1, 0, 2, 3)) if block.swapped else kernel


def _patches(tiles: Tensor, block: Block) -> Tensor:
    """Return untransformed tiles as (taps * channels, positions)."""
    if block.channels == 1:
        return tiles
    parts = tf.transpose(tf.reshape(tiles, (tiles.shape[0], -1, block.channels)), (0, 2, 1))
    return tf.reshape(parts, (tiles.shape[0] * block.channels, -1))


def forward(x: Tensor, factor: Tensor, bias: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Return pooled activations (positions, filters), and int8 the phase that won (4: none, ReLU is closed)."""
    tiles = _cut(x, block)
    if block.winograd:
        products = tf.matmul(tf.reshape(tiles, (16, -1, block.channels)), factor)
        stacked = tf.matmul(_output_matrix(block), tf.reshape(products, (16, -1)))
        outputs = [stacked[n] for n in range(4)]
        # Flat vectors: with (positions, filters) shapes XLA computes indices instead of vectors.
        bias = tf.tile(bias, [stacked.shape[1] // block.filters])
    else:
        stacked = tf.matmul(_patches(tiles, block), factor, transpose_a=True)
        outputs = [stacked[:, n * block.filters : (n + 1) * block.filters] for n in range(4)]
    best = tf.maximum(tf.maximum(outputs[0], outputs[1]), tf.maximum(outputs[2], outputs[3]))
    pooled = tf.nn.relu(best + bias)
    winner = tf.where(outputs[2] == best, 2, 3)
    winner = tf.where(outputs[0] == best, 0, tf.where(outputs[1] == best, 1, winner))
    return pooled, tf.cast(tf.where(pooled > 0, winner, 4), tf.int8)


def backward(
    x: Tensor, factor: Tensor, winner: Tensor, gradient: Tensor, block: Block, first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input (None in the first block), factor and bias; `gradient` is shaped as `winner`."""
    tiles = _cut(x, block)
    n = x.shape[2]
    bias_gradient = tf.reduce_sum(tf.reshape(tf.where(winner < 4, gradient, 0.0), (-1, block.filters)), 0)
    if block.winograd:
        phases = tf.constant([[0], [1], [2], [3]], tf.int8)
        spread = tf.matmul(_output_matrix(block).T.copy(), tf.where(winner[None] == phases, gradient[None], 0.0))
        spread = tf.reshape(spread, (16, -1, block.filters))
        factor_gradient = tf.matmul(tf.reshape(tiles, (16, -1, block.channels)), spread, transpose_a=True)
        tile_gradient = tf.matmul(spread, factor, transpose_b=True)
    else:
        spread = tf.concat([tf.where(winner == phase, gradient, 0.0) for phase in range(4)], 1)
        factor_gradient = tf.matmul(_patches(tiles, block), spread)
        tile_gradient = None
        if not first:
            tile_gradient = tf.reshape(
                tf.matmul(factor, spread, transpose_b=True), (-1, block.channels, spread.shape[0])
            )
            tile_gradient = tf.transpose(tile_gradient, (0, 2, 1))
    return (None if first else _uncut(tile_gradient, block, n)), factor_gradient, bias_gradient


def pooled_shape(block: Block, micro: int) -> tuple[int, ...]:
    """Return the shape of a micro-batch's pooled activations as the block leaves them."""
    if block.winograd:
        return (block.tiles * micro * block.filters,)
    return (block.tiles * micro, block.filters)
