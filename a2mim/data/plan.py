"""The order of samples: a pure function of (shard sizes, seed, epoch) that reads no data.

The shards are permuted, the list of samples is cut into lanes, each lane is shuffled in blocks, and the lanes are
interleaved. Global batch t is the positions [t * B, (t + 1) * B) of the result. Rank r of R takes every R-th of them,
beginning with the r-th. Position p belongs to lane p % lanes, so if R divides the number of lanes, rank r gets the
lanes l with l % R = r. Every rank has the same number of steps, a global batch does not depend on R, and no sample
comes twice in an epoch.
"""

import numpy as np

from a2mim.data import keyed
from a2mim.data.repeated import repeat_order, views_of

VERSION = 1  # of the order; increased when the same arguments give another order


class Plan:
    """The order of samples in each epoch.

    Args:
        shard_sizes: samples in each shard.
        global_batch_size: images in a step over all ranks.
        seed: of the order.
        lanes: number of positions in the data that a batch is drawn from; at most the global batch size is used.
        block: samples that are shuffled together inside a lane. It limits how far apart reads are; None: whole lanes.

    An epoch has N // global_batch_size steps. The remaining samples are left out; they differ in each epoch.
    """

    def __init__(self, shard_sizes, global_batch_size: int, seed: int = 0, lanes: int = 64, block: int | None = None):
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self.size = int(self.shard_sizes.sum())
        if not 1 <= global_batch_size <= self.size:
            raise ValueError(
                f"the data has {self.size} images and global_batch_size is {global_batch_size}: "
                "an epoch would have no step; lower global_batch_size or give more images"
            )
        if lanes < 1 or (block is not None and block < 1):
            raise ValueError(f"lanes={lanes} and block={block} must be at least 1 (block=None: whole lanes)")
        self.global_batch_size, self.seed, self.block = global_batch_size, seed, block
        self.lanes = min(lanes, global_batch_size)
        self.steps = self.size // global_batch_size
        self._epoch: int | None = None
        self._order = np.empty(0, np.int64)

    def batch(
        self, epoch: int, step: int, rank: int = 0, world_size: int = 1, repeats: int = 1, views: int = 1
    ) -> np.ndarray:
        """The ids of one rank's part of a global batch: (global_batch_size / world_size * views,) int64. With `repeats`
        or `views`, they are the ids of copies (data/repeated.py). The views of an image are side by side, on one rank.
        """
        self.check_world(world_size)
        first, order = step * self.global_batch_size, self.order(epoch)
        order = order if repeats == 1 else repeat_order(order, repeats)
        ids = order[first : first + self.global_batch_size][rank::world_size]
        return ids if views == 1 else views_of(ids, self.size * repeats, views)

    def check_world(self, world_size: int) -> None:
        """ValueError unless every process gets equally many images of each batch."""
        if self.global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be divided among {world_size} processes; "
                "choose a multiple"
            )

    @property
    def left_out(self) -> int:
        """Images that an epoch leaves out because they do not fill a batch; each epoch leaves out others."""
        return self.size - self.steps * self.global_batch_size

    def order(self, epoch: int) -> np.ndarray:
        """All ids in the order of the epoch: (N,) int64. The last result is cached."""
        if self._epoch != epoch:
            self._epoch, self._order = epoch, self._interleave(epoch)
        return self._order

    def _interleave(self, epoch: int) -> np.ndarray:
        """Puts lane l's j-th sample at position j * lanes + l. The first N % lanes lanes have one sample more."""
        samples = self._permute_shards(epoch)
        rank_of = keyed.hashes(self.seed, epoch, np.arange(self.size), 1, keyed.ORDER)[:, 0]
        order = np.empty(self.size, np.int64)
        length, longer = divmod(self.size, self.lanes)
        start = 0
        for lane in range(self.lanes):
            stop = start + length + (lane < longer)
            order[lane :: self.lanes] = self._shuffle(samples[start:stop], rank_of[start:stop])
            start = stop
        return order

    def _permute_shards(self, epoch: int) -> np.ndarray:
        """Ids shard by shard, rotated by a random number, so that each epoch cuts the lanes elsewhere."""
        draws = keyed.hashes(self.seed, epoch, np.arange(len(self.shard_sizes) + 1), 2, keyed.ORDER)[:, 1]
        starts = np.cumsum(self.shard_sizes) - self.shard_sizes
        shards = np.argsort(draws[:-1], kind="stable")
        ids = np.concatenate([np.arange(starts[s], starts[s] + self.shard_sizes[s]) for s in shards])
        return np.roll(ids, -int(draws[-1] % np.uint64(self.size)))

    def _shuffle(self, samples: np.ndarray, rank_of: np.ndarray) -> np.ndarray:
        block = self.block or len(samples)
        starts = range(0, len(samples), block)
        orders = [a + np.argsort(rank_of[a : a + block], kind="stable") for a in starts]
        return samples[np.concatenate(orders)]
