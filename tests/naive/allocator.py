"""Allocators in plain Python: lists of blocks in address order, searched from end to end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Block:
    address: int
    size: int
    free: bool = True


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _merged(segment: list[Block]) -> list[Block]:
    """Neighbouring free blocks made one."""
    out: list[Block] = []
    for block in segment:
        if out and out[-1].free and block.free:
            out[-1] = Block(out[-1].address, out[-1].size + block.size)
        else:
            out.append(block)
    return out


@dataclass
class CachingAllocator:
    """torch's CUDA caching allocator, by its documented rules; MiB and 512 B written out."""

    expandable: bool = False
    capacity: int = 0
    pools: dict[str, list[list[Block]]] = field(default_factory=lambda: {"small": [], "large": []})
    end: dict[str, int] = field(default_factory=lambda: {"small": 0, "large": 1 << 47})

    @property
    def reserved(self) -> int:
        return sum(b.size for pool in self.pools.values() for segment in pool for b in segment)

    def malloc(self, size: int) -> Block | None:
        size = _up(size, 512)
        pool = "small" if size <= 2**20 else "large"
        found = self._fit(pool, size) or self._grow(pool, size)
        if found is None:
            for name, segments in self.pools.items():
                self.pools[name] = (
                    [s for s in segments if not (len(s) == 1 and s[0].free)] if not self.expandable else segments
                )
            found = self._grow(pool, size)
        if found is None:
            return None
        segment, block = found
        rest = block.size - size
        if rest >= 512 if pool == "small" or self.expandable else rest > 2**20:
            segment.insert(segment.index(block) + 1, Block(block.address + size, rest))
            block.size = size
        block.free = False
        return block

    def _fit(self, pool: str, size: int) -> tuple[list[Block], Block] | None:
        fitting = [(b.size, b.address, s, b) for s in self.pools[pool] for b in s if b.free and b.size >= size]
        return min(fitting, key=lambda f: f[:2])[2:] if fitting else None

    def _grow(self, pool: str, size: int) -> tuple[list[Block], Block] | None:
        segments = self.pools[pool]
        last = segments[0][-1] if self.expandable and segments else None
        if self.expandable:
            have = last.size if last and last.free else 0
            more = _up(size - have, 2 << 20 if pool == "small" else 20 << 20)
        elif pool == "small":
            more = 2 << 20
        else:
            more = 20 << 20 if size < 10 << 20 else _up(size, 2 << 20)
        if self.capacity and self.reserved + more > self.capacity:
            return None
        block = Block(self.end[pool], more)
        self.end[pool] += more
        if not self.expandable or not segments:
            segments.append([block])
            return segments[-1], block
        if last and last.free:
            last.size += more
            return segments[0], last
        segments[0].append(block)
        return segments[0], block

    def free(self, block: Block) -> None:
        block.free = True
        for segments in self.pools.values():
            for i, segment in enumerate(segments):
                if any(b is block for b in segment):
                    segments[i] = _merged(segment)


@dataclass
class Glibc:
    """malloc's main arena: `posix_memalign(alignment)` and `free`, as glibc 2.36 does them."""

    mmap_threshold: int = 128 << 10
    dynamic: bool = True
    mmap_threshold_max: int = 32 << 20
    trim_threshold: int = 128 << 10
    top_pad: int = 128 << 10
    alignment: int = 64
    # of the thread: chunks that never merge, seven of a size; full at first, of chunks from elsewhere (at -1)
    cache: list[Block] = field(
        default_factory=lambda: [Block(-1, size) for size in range(32, 129, 16) for _ in range(7)]
    )
    bins: list[Block] = field(default_factory=list)  # small chunks that merge when a large request comes
    chunks: list[Block] = field(default_factory=list)
    heap: int = 0
    touched: int = 0
    maps: dict[int, int] = field(default_factory=dict)  # address -> bytes of the mapping
    written: dict[int, int] = field(default_factory=dict)
    next_map: int = 1 << 46

    @property
    def top(self) -> int:
        return self.chunks[-1].address + self.chunks[-1].size if self.chunks else 0

    @property
    def reserved(self) -> int:
        return self.heap + sum(self.maps.values())

    @property
    def resident(self) -> int:
        return self.touched + sum(self.written.values())

    def memalign(self, size: int) -> int:
        """The address of the bytes."""
        chunk = max(_up(size + 8, 16), 32)
        need = max(_up(chunk + self.alignment + 32 + 8, 16), 32)
        if need >= 1024:
            self._empty_bins()
        fitting = [b for b in self.chunks if b.free and b.size >= need]
        if fitting:
            taken = min(fitting, key=lambda b: (b.size, b.address))
            self._cut(taken, need)
        elif self.heap - self.top < need + 32 and need >= self.mmap_threshold:
            address = self.next_map + self.alignment
            self.maps[address] = _up(need + 8, 4096)
            self.written[address] = _up(size, 4096)
            self.next_map += self.maps[address]
            return address
        else:
            if self.heap - self.top < need + 32:
                self.heap += _up(need + self.top_pad + 32 - (self.heap - self.top), 4096)
            taken = Block(self.top, need)
            self.chunks.append(taken)
        taken.free = False
        start = _up(taken.address + 16, self.alignment) - 16
        if 0 < start - taken.address < 32:
            start += self.alignment
        if start > taken.address:
            lead = Block(taken.address, start - taken.address, free=False)
            self.chunks.insert(self._index(taken), lead)
            taken.address, taken.size = start, taken.size - lead.size
            self._put(lead)
        if taken.size > chunk + 32:
            rest = Block(taken.address + chunk, taken.size - chunk, free=False)
            self.chunks.insert(self._index(taken) + 1, rest)
            taken.size = chunk
            self._put(rest)
        self.touched = max(self.touched, taken.address + chunk)
        return taken.address + 16

    def small(self) -> Block | None:
        """The last small chunk that was left or freed, of the cache or else of those that have not merged; None for one
        from elsewhere, of which it takes each size in turn, the largest first."""
        mine = [b for b in self.cache if b.address >= 0]
        before = [b for b in self.cache if b.address < 0]
        if mine or before:
            taken = mine[-1] if mine else max(before, key=lambda b: (sum(b.size == c.size for c in before), b.size))
            self.cache = [b for b in self.cache if b is not taken]
            return taken if mine else None
        return self.bins.pop() if self.bins else None

    def free_small(self, block: Block) -> None:
        self._put(block)

    def free(self, address: int) -> None:
        if address in self.maps:
            size = self.maps.pop(address)
            del self.written[address]
            if self.dynamic and self.mmap_threshold < size <= self.mmap_threshold_max:
                self.mmap_threshold, self.trim_threshold = size, 2 * size
            return
        block = next(b for b in self.chunks if b.address == address - 16)
        if self._put(block) >= 65536:
            self._empty_bins()
            self._trim()

    def _put(self, block: Block) -> int:
        """Bytes of the chunk, or of the top, that it becomes part of; 0 if it does not merge."""
        if block.size > 128:
            return self._release(block)
        (self.cache if sum(b.size == block.size for b in self.cache) < 7 else self.bins).append(block)
        return 0

    def _empty_bins(self) -> None:
        bins, self.bins = self.bins, []
        for block in bins:
            self._release(block)

    def _index(self, block: Block) -> int:
        return next(i for i, b in enumerate(self.chunks) if b is block)

    def _cut(self, block: Block, size: int) -> None:
        if block.size >= size + 32:
            self.chunks.insert(self._index(block) + 1, Block(block.address + size, block.size - size))
            block.size = size

    def _release(self, block: Block) -> int:
        """Bytes of the chunk, or of the top, that it becomes part of."""
        block.free = True
        here = self._index(block)
        if here + 1 < len(self.chunks) and self.chunks[here + 1].free:
            block.size += self.chunks.pop(here + 1).size
        if here and self.chunks[here - 1].free:
            before = self.chunks.pop(here - 1)
            block.address, block.size = before.address, before.size + block.size
        if block is self.chunks[-1]:  # borders on the top
            self.chunks.pop()
            return self.heap - self.top
        return block.size

    def _trim(self) -> None:
        if self.heap - self.top >= max(self.trim_threshold, 65536):
            extra = (self.heap - self.top - 33 - self.top_pad) // 4096 * 4096
            if extra > 0:
                self.heap -= extra
                self.touched = min(self.touched, self.heap)
