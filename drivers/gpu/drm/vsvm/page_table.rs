// SPDX-License-Identifier: GPL-2.0

//! The GPU's page table.
//!
//! Four levels of 512 entries translate 48 bits of address. A leaf is a page of 4 KiB in the lowest
//! level, or of 2 MiB in the level above it; it holds a DMA address and the right to write.
//!
//! The rules by which the library calls a driver decide the shape of this file:
//!
//! - [`prepare`](PageTable::prepare) may sleep and allocate: it is the only function that makes
//!   tables, and it makes the lowest ones too, even where a large leaf is likely. Nothing below it
//!   ever needs memory.
//! - [`release`](PageTable::release) gives tables back. Ranges may share one, and one of them may be
//!   prepared and have no leaf yet, so each lowest table knows which of its pages are prepared.
//! - [`map`](PageTable::map) runs under the notifier lock, in parallel with others for other spans.
//! - [`unmap`](PageTable::unmap) may run in memory reclaim.
//! - [`translate`](PageTable::translate) is the hardware. It runs whenever it wants.
//!
//! So leaves are atomics, and the tree of tables has a lock of its own, which is held for writing
//! only to hang in or take out a table. Tables are allocated before it is taken and freed after it is
//! dropped, since a task in reclaim may wait for it.

use core::ops::Range;

use kernel::{
    dma::DmaAddress,
    prelude::*,
    sizes::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full, //
            },
            Atomic, //
        },
        rwsem::{
            new_rwsem,
            RwSemaphore, //
        }, //
    }, //
};

use crate::counters::Counter;

/// Bytes that the smallest leaf translates. It is the GPU's page size, whatever the CPU's is.
pub(crate) const SMALL: usize = SZ_4K;

/// Bytes that the largest leaf translates.
pub(crate) const LARGE: usize = SZ_2M;

/// One past the last address that can be translated.
pub(crate) const LIMIT: usize = 1 << 48;

/// Entries in a table of any level.
const FAN_OUT: usize = 512;

/// Entry bit: the entry is a leaf.
const VALID: u64 = 1 << 0;

/// Entry bit: the leaf may be written through.
const WRITE: u64 = 1 << 1;

/// Entry bits that hold the DMA address.
const ADDRESS: u64 = !(SMALL as u64 - 1);

/// A translation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The first address that it translates, a multiple of `size`.
    pub(crate) va: usize,
    /// How many bytes it translates: [`SMALL`] or [`LARGE`].
    pub(crate) size: usize,
    /// The DMA address that belongs to `va`.
    pub(crate) dma: DmaAddress,
    /// Whether writes are allowed.
    pub(crate) write: bool,
}

impl Leaf {
    fn new(va: usize, size: usize, entry: u64) -> Option<Self> {
        (entry & VALID != 0).then_some(Self {
            // The part below the size selects a byte inside of the leaf.
            va: va & !(size - 1),
            size,
            dma: entry & ADDRESS,
            write: entry & WRITE != 0,
        })
    }

    /// The DMA address that belongs to `va`, which must be inside of the leaf.
    pub(crate) fn dma(&self, va: usize) -> DmaAddress {
        self.dma
            .wrapping_add(va.wrapping_sub(self.va) as DmaAddress)
    }

    /// Whether the leaf translates any address of `span`.
    pub(crate) fn overlaps(&self, span: &Range<usize>) -> bool {
        // OVERFLOW: A leaf is below `LIMIT`.
        self.va < span.end && span.start < self.va + self.size
    }

    /// Whether the leaf says the same of the address `va` as `other` does, or promises less.
    ///
    /// The sizes may differ, since leaves can be split; and the right to write may have come later.
    pub(crate) fn agrees(&self, other: &Leaf, va: usize) -> bool {
        self.dma(va) == other.dma(va) && (other.write || !self.write)
    }
}

/// What can be a child of a [`Dir`].
trait Node: Sized {
    fn new() -> Result<Self>;
}

/// A table whose entries are leaves.
struct Leaves(KVec<Atomic<u64>>);

impl Node for Leaves {
    fn new() -> Result<Self> {
        let mut entries = KVec::with_capacity(FAN_OUT, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..FAN_OUT {
            entries.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self(entries))
    }
}

impl Leaves {
    fn load(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |e| e.load(Acquire))
    }

    /// Writes an entry and keeps count of the valid ones.
    fn store(&self, index: usize, entry: u64, count: &Counter) {
        let Some(slot) = self.0.get(index) else {
            return;
        };
        // Most of what is cleared is clear already, and an exchange is dear.
        if entry == 0 && slot.load(Acquire) == 0 {
            return;
        }
        let old = slot.xchg(entry, Full);

        if entry & VALID != 0 {
            count.add(1);
        }
        if old & VALID != 0 {
            count.sub(1);
        }
    }
}

/// A table of the lowest level.
struct Lowest {
    leaves: Leaves,
    /// One bit for each page: some range wants to be able to map it.
    prepared: [u64; FAN_OUT / 64],
}

impl Node for Lowest {
    fn new() -> Result<Self> {
        Ok(Self {
            leaves: Leaves::new()?,
            prepared: [0; FAN_OUT / 64],
        })
    }
}

impl Lowest {
    /// The bits of `span`, which is inside of what the table translates: for each word its mask.
    fn masks(span: &Range<usize>) -> impl Iterator<Item = u64> {
        let first = index(span.start, SMALL_SHIFT);
        // OVERFLOW: `span` is not empty and at most as long as the table.
        let end = first + (span.end - span.start).div_ceil(SMALL);

        (0..FAN_OUT).step_by(64).map(move |word| {
            let from = first.clamp(word, word + 64) - word;
            let to = end.clamp(word, word + 64) - word;

            // `to - from` ones, shifted up by `from`.
            match to - from {
                0 => 0,
                ones => (u64::MAX >> (64 - ones)) << from,
            }
        })
    }

    fn is_prepared(&self, span: &Range<usize>) -> bool {
        self.prepared
            .iter()
            .zip(Self::masks(span))
            .all(|(word, mask)| word & mask == mask)
    }

    fn set_prepared(&mut self, span: &Range<usize>, prepared: bool) {
        for (word, mask) in self.prepared.iter_mut().zip(Self::masks(span)) {
            *word = if prepared {
                *word | mask
            } else {
                *word & !mask
            };
        }
    }

    fn is_wanted(&self) -> bool {
        self.prepared.iter().any(|word| *word != 0)
    }
}

/// A table whose entries are tables.
struct Dir<T> {
    children: KVec<Option<KBox<T>>>,
    /// How many children there are.
    used: usize,
}

impl<T> Node for Dir<T> {
    fn new() -> Result<Self> {
        let mut children = KVec::with_capacity(FAN_OUT, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..FAN_OUT {
            children.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self { children, used: 0 })
    }
}

impl<T> Dir<T> {
    fn get(&self, index: usize) -> Option<&T> {
        self.children.get(index)?.as_deref()
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.children.get_mut(index)?.as_deref_mut()
    }

    /// The child, which is `spare` if there was none; [`None`] if there is none either.
    fn get_or_put(&mut self, index: usize, spare: &mut Option<KBox<T>>) -> Option<&mut T> {
        let slot = self.children.get_mut(index)?;

        if slot.is_none() {
            *slot = Some(spare.take()?);
            self.used += 1;
        }
        slot.as_deref_mut()
    }

    fn take(&mut self, index: usize) -> Option<KBox<T>> {
        let child = self.children.get_mut(index)?.take()?;

        self.used -= 1;
        Some(child)
    }

    fn is_empty(&self) -> bool {
        self.used == 0
    }
}

/// The second lowest level: its entries are large leaves *and* tables of small ones.
///
/// Where both are there, the large leaf counts. The table below it is made in advance, so that the
/// leaf can be split without allocation; there is no large leaf without it.
struct Middle {
    large: Leaves,
    small: Dir<Lowest>,
}

impl Node for Middle {
    fn new() -> Result<Self> {
        Ok(Self {
            large: Leaves::new()?,
            small: Dir::new()?,
        })
    }
}

type Root = Dir<Dir<Middle>>;

/// Index of `va` in the table whose entries translate `1 << shift` bytes each.
const fn index(va: usize, shift: u32) -> usize {
    (va >> shift) % FAN_OUT
}

const SMALL_SHIFT: u32 = SMALL.trailing_zeros();
const LARGE_SHIFT: u32 = LARGE.trailing_zeros();
const SHIFT_1G: u32 = 30;
const SHIFT_512G: u32 = 39;

/// The table of the second lowest level that translates `va`.
fn middle(root: &Root, va: usize) -> Option<&Middle> {
    if va >= LIMIT {
        return None;
    }
    root.get(index(va, SHIFT_512G))?.get(index(va, SHIFT_1G))
}

/// The stretches of `span`, which ends at or below [`LIMIT`], that are in one lowest table each.
fn blocks(span: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let span = span.clone();
    // OVERFLOW: Below `LIMIT`, this and what follows.
    (span.start & !(LARGE - 1)..span.end)
        .step_by(LARGE)
        .map(move |block| block.max(span.start)..span.end.min(block + LARGE))
}

/// A GPU page table.
#[pin_data]
pub(crate) struct PageTable {
    /// May be taken in reclaim: nothing is allocated or freed under it.
    #[pin]
    root: RwSemaphore<Root>,
    small_leaves: Counter,
    large_leaves: Counter,
}

impl PageTable {
    /// Makes an empty page table.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            root <- new_rwsem!(Root::new()?, "vsvm::PageTable::root"),
            small_leaves: Counter::new(),
            large_leaves: Counter::new(),
        })
    }

    /// Valid leaves of [`SMALL`] and of [`LARGE`] size.
    pub(crate) fn leaves(&self) -> (u64, u64) {
        (self.small_leaves.get(), self.large_leaves.get())
    }

    /// Makes all tables that leaves in `span` need. Sleeps.
    ///
    /// `EINVAL` if the span cannot be translated. What it made stays if it fails in the middle.
    pub(crate) fn prepare(&self, span: Range<usize>) -> Result {
        if span.end > LIMIT {
            return Err(EINVAL);
        }
        for part in blocks(&span) {
            let done = middle(&self.root.read(), part.start)
                .and_then(|middle| middle.small.get(index(part.start, LARGE_SHIFT)))
                .is_some_and(|lowest| lowest.is_prepared(&part));

            if !done {
                // Not done only if what was there at first is gone, which cannot go on for long.
                while !self.grow(&part)? {}
            }
        }
        Ok(())
    }

    /// Makes the tables for `part`, which are in one lowest table; `false` if one was taken away
    /// meanwhile.
    fn grow(&self, part: &Range<usize>) -> Result<bool> {
        let at = (
            index(part.start, SHIFT_512G),
            index(part.start, SHIFT_1G),
            index(part.start, LARGE_SHIFT),
        );
        let (needs_dir, needs_middle, needs_lowest) = {
            let root = self.root.read();
            let dir = root.get(at.0);
            let middle = dir.and_then(|dir| dir.get(at.1));
            let lowest = middle.and_then(|middle| middle.small.get(at.2));

            (dir.is_none(), middle.is_none(), lowest.is_none())
        };
        let (mut dir, mut middle, mut lowest) = (None, None, None);

        if needs_dir {
            dir = Some(KBox::new(Dir::new()?, GFP_KERNEL_ACCOUNT)?);
        }
        if needs_middle {
            middle = Some(KBox::new(Middle::new()?, GFP_KERNEL_ACCOUNT)?);
        }
        if needs_lowest {
            lowest = Some(KBox::new(Lowest::new()?, GFP_KERNEL_ACCOUNT)?);
        }
        // Declared last, so that it is dropped before what turns out to be superfluous.
        let mut root = self.root.write();
        let lowest = root
            .get_or_put(at.0, &mut dir)
            .and_then(|dir| dir.get_or_put(at.1, &mut middle))
            .and_then(|middle| middle.small.get_or_put(at.2, &mut lowest));

        Ok(lowest
            .map(|lowest| lowest.set_prepared(part, true))
            .is_some())
    }

    /// Gives back the tables that only `span` needed, in which nothing is mapped any more. Sleeps.
    pub(crate) fn release(&self, span: Range<usize>) {
        let span = span.start..span.end.min(LIMIT);

        for part in blocks(&span) {
            // Freed here, without the lock.
            drop(self.shrink(&part));
        }
    }

    /// Takes out the tables that nobody needs without `part`, which is in one lowest table.
    fn shrink(&self, part: &Range<usize>) -> impl Sized {
        let at = (
            index(part.start, SHIFT_512G),
            index(part.start, SHIFT_1G),
            index(part.start, LARGE_SHIFT),
        );
        let mut root = self.root.write();
        let dir = root.get_mut(at.0)?;
        let middle = dir.get_mut(at.1)?;
        let lowest = middle.small.get_mut(at.2)?;

        lowest.set_prepared(part, false);
        if lowest.is_wanted() {
            return None;
        }
        // Nothing is mapped, and so nothing is cleared here. It would not do to lose count.
        middle.large.store(at.2, 0, &self.large_leaves);
        self.clear_small(&lowest.leaves, 0..FAN_OUT);

        let lowest = middle.small.take(at.2);
        let middle = if middle.small.is_empty() {
            dir.take(at.1)
        } else {
            None
        };
        let dir = if dir.is_empty() {
            root.take(at.0)
        } else {
            None
        };

        Some((lowest, middle, dir))
    }

    /// Translates the addresses `va` to `dma..`, which are contiguous; replaces what was there.
    ///
    /// Both must be multiples of [`SMALL`]. Fails with `EFAULT` if the span was not prepared, in
    /// the middle of the work. Does not allocate; must not run in parallel with `map` or `unmap` of
    /// the same addresses.
    pub(crate) fn map(&self, va: Range<usize>, dma: DmaAddress, write: bool) -> Result {
        let flags = VALID | if write { WRITE } else { 0 };
        let root = self.root.read();

        if va.end > LIMIT {
            return Err(EFAULT);
        }
        for part in blocks(&va) {
            let middle = middle(&root, part.start).ok_or(EFAULT)?;
            let i = index(part.start, LARGE_SHIFT);
            let small = &middle.small.get(i).ok_or(EFAULT)?.leaves;
            let dma = dma.wrapping_add((part.start - va.start) as DmaAddress);

            if part.end - part.start == LARGE && dma % LARGE as DmaAddress == 0 {
                middle.large.store(i, dma | flags, &self.large_leaves);
                self.clear_small(small, 0..FAN_OUT);
            } else {
                self.split(middle, i);
                for (k, va) in part.step_by(SMALL).enumerate() {
                    // OVERFLOW: `k` is below `FAN_OUT`.
                    let dma = dma.wrapping_add((k * SMALL) as DmaAddress);
                    small.store(index(va, SMALL_SHIFT), dma | flags, &self.small_leaves);
                }
            }
        }
        Ok(())
    }

    /// Takes away every translation of addresses in `span`, and no other.
    ///
    /// A large leaf of which only a part is in `span` is split. Does not allocate.
    pub(crate) fn unmap(&self, span: Range<usize>) {
        let root = self.root.read();
        let limit = span.end.min(LIMIT);
        let mut at = span.start;

        while at < limit {
            let Some(middle) = middle(&root, at) else {
                // There is no table for this GiB.
                // OVERFLOW: `at` is below `LIMIT`.
                at = (at | ((1 << SHIFT_1G) - 1)) + 1;
                continue;
            };
            let i = index(at, LARGE_SHIFT);
            let block = at & !(LARGE - 1);
            // OVERFLOW: As above.
            let end = limit.min(block + LARGE);

            if end - at == LARGE {
                middle.large.store(i, 0, &self.large_leaves);
            } else {
                self.split(middle, i);
            }
            if let Some(small) = middle.small.get(i) {
                let entries = index(at, SMALL_SHIFT)..(end - block).div_ceil(SMALL);

                self.clear_small(&small.leaves, entries);
            }
            at = end;
        }
    }

    fn clear_small(&self, small: &Leaves, entries: Range<usize>) {
        for i in entries {
            small.store(i, 0, &self.small_leaves);
        }
    }

    /// Replaces the large leaf `i`, if it is valid, by small leaves that say the same.
    fn split(&self, middle: &Middle, i: usize) {
        let entry = middle.large.load(i);

        if entry & VALID == 0 {
            return;
        }
        // There is a table below each large leaf. Were it not so, the whole leaf would go, which
        // is safe.
        if let Some(small) = middle.small.get(i) {
            for k in 0..FAN_OUT {
                let entry = entry.wrapping_add((k * SMALL) as u64);
                small.leaves.store(k, entry, &self.small_leaves);
            }
        }
        // The large leaf goes last: whoever translates meanwhile finds one of the two.
        middle.large.store(i, 0, &self.large_leaves);
    }

    /// Looks up the translation of `va`, as the hardware does on a TLB miss.
    pub(crate) fn translate(&self, va: usize) -> Option<Leaf> {
        let root = self.root.read();
        let middle = middle(&root, va)?;
        let i = index(va, LARGE_SHIFT);

        Leaf::new(va, LARGE, middle.large.load(i)).or_else(|| {
            let small = &middle.small.get(i)?.leaves;
            let entry = small.load(index(va, SMALL_SHIFT));
            Leaf::new(va, SMALL, entry)
        })
    }
}

#[cfg(CONFIG_DRM_GPUSVM_RUST_KUNIT_TEST)]
#[kunit_tests(vsvm_page_table)]
mod tests {
    use super::*;

    const BASE: usize = 0x7f00_0000_0000;

    fn table(span: Range<usize>) -> Result<Pin<KBox<PageTable>>> {
        let table = KBox::try_pin_init(PageTable::new(), GFP_KERNEL)?;

        table.prepare(span)?;
        Ok(table)
    }

    fn dma(table: &PageTable, va: usize) -> Option<(DmaAddress, usize, bool)> {
        table
            .translate(va)
            .map(|leaf| (leaf.dma(va), leaf.size, leaf.write))
    }

    #[test]
    fn empty() -> Result {
        let table = KBox::try_pin_init(PageTable::new(), GFP_KERNEL)?;

        assert_eq!(table.translate(0), None);
        assert_eq!(table.translate(LIMIT - 1), None);
        assert_eq!(table.translate(LIMIT), None);
        assert_eq!(table.translate(usize::MAX), None);
        // Nothing to take away, in all of the address space and beyond it.
        table.unmap(0..usize::MAX);
        assert_eq!(table.leaves(), (0, 0));
        Ok(())
    }

    #[test]
    fn needs_prepare() -> Result {
        let table = table(BASE..BASE + LARGE)?;

        assert_eq!(
            table.map(BASE + LARGE..BASE + LARGE + SMALL, 0, true),
            Err(EFAULT)
        );
        assert_eq!(table.map(0..SMALL, 0, true), Err(EFAULT));
        assert_eq!(table.prepare(LIMIT - SMALL..LIMIT + SMALL), Err(EINVAL));
        assert_eq!(table.leaves(), (0, 0));
        Ok(())
    }

    #[test]
    fn small_leaves() -> Result {
        let table = table(BASE..BASE + 2 * LARGE)?;
        // Across the border of two tables.
        let start = BASE + LARGE - 3 * SMALL;

        table.map(start..start + 5 * SMALL, 0x1000_3000, false)?;
        assert_eq!(table.leaves(), (5, 0));
        for i in 0..5 {
            let va = start + i * SMALL;

            assert_eq!(
                dma(&table, va + 7),
                Some((0x1000_3007 + (i * SMALL) as u64, SMALL, false))
            );
        }
        assert_eq!(table.translate(start - 1), None);
        assert_eq!(table.translate(start + 5 * SMALL), None);
        table.unmap(start + SMALL..start + 4 * SMALL);
        assert_eq!(table.leaves(), (2, 0));
        assert!(dma(&table, start).is_some());
        assert!(dma(&table, start + SMALL).is_none());
        assert!(dma(&table, start + 3 * SMALL).is_none());
        assert!(dma(&table, start + 4 * SMALL).is_some());
        Ok(())
    }

    #[test]
    fn large_leaf_only_if_both_are_aligned() -> Result {
        let table = table(BASE..BASE + 2 * LARGE)?;

        table.map(BASE..BASE + LARGE, 0x4000_0000, true)?;
        assert_eq!(table.leaves(), (0, 1));
        assert_eq!(
            dma(&table, BASE + 0x12345),
            Some((0x4001_2345, LARGE, true))
        );
        table.map(BASE + LARGE..BASE + 2 * LARGE, 0x4000_1000, true)?;
        assert_eq!(table.leaves(), (512, 1));
        assert_eq!(
            dma(&table, BASE + LARGE + 0x2345),
            Some((0x4000_3345, SMALL, true))
        );
        table.unmap(BASE..BASE + 2 * LARGE);
        assert_eq!(table.leaves(), (0, 0));
        Ok(())
    }

    #[test]
    fn split_keeps_the_rest() -> Result {
        let table = table(BASE..BASE + LARGE)?;

        table.map(BASE..BASE + LARGE, 0x4000_0000, true)?;
        // The last page goes, in a span that goes on behind the leaf.
        table.unmap(BASE + LARGE - SMALL..BASE + 3 * LARGE);
        assert_eq!(table.leaves(), (511, 0));
        assert_eq!(dma(&table, BASE), Some((0x4000_0000, SMALL, true)));
        assert_eq!(
            dma(&table, BASE + LARGE - SMALL - 1),
            Some((0x4000_0000 + (LARGE - SMALL - 1) as u64, SMALL, true))
        );
        assert_eq!(table.translate(BASE + LARGE - SMALL), None);
        // The first, in a span that begins before it.
        table.unmap(BASE - LARGE..BASE + SMALL);
        assert_eq!(table.leaves(), (510, 0));
        assert_eq!(table.translate(BASE), None);
        Ok(())
    }

    #[test]
    fn map_replaces() -> Result {
        let table = table(BASE..BASE + LARGE)?;
        let page = BASE + 9 * SMALL;

        // Small by large, large by small in its middle, and the right to write.
        table.map(page..page + SMALL, 0x5000, false)?;
        table.map(BASE..BASE + LARGE, 0x4000_0000, false)?;
        assert_eq!(table.leaves(), (0, 1));
        assert_eq!(dma(&table, page), Some((0x4000_9000, LARGE, false)));
        table.map(page..page + SMALL, 0x7000, true)?;
        assert_eq!(table.leaves(), (512, 0));
        assert_eq!(dma(&table, page), Some((0x7000, SMALL, true)));
        assert_eq!(dma(&table, page + SMALL), Some((0x4000_a000, SMALL, false)));
        Ok(())
    }

    #[test]
    fn agreement() {
        let large = Leaf {
            va: BASE,
            size: LARGE,
            dma: 0x4000_0000,
            write: true,
        };
        let small = Leaf {
            va: BASE + SMALL,
            size: SMALL,
            dma: 0x4000_1000,
            write: true,
        };
        let read_only = Leaf {
            write: false,
            ..small
        };

        assert!(large.agrees(&small, BASE + SMALL));
        assert!(small.agrees(&large, BASE + SMALL));
        assert!(read_only.agrees(&small, BASE + SMALL));
        assert!(!small.agrees(&read_only, BASE + SMALL));
        assert!(!large.agrees(&Leaf { dma: 0, ..small }, BASE + SMALL));
    }

    #[test]
    fn tables_are_given_back() -> Result {
        let table = KBox::try_pin_init(PageTable::new(), GFP_KERNEL)?;
        let is_bare = || table.root.read().is_empty();
        let first = BASE..BASE + 3 * SMALL;
        let second = BASE + 5 * SMALL..BASE + LARGE + SMALL;

        assert!(is_bare());
        table.prepare(first.clone())?;
        table.prepare(first.clone())?;
        table.prepare(second.clone())?;
        assert_eq!(
            table.map(BASE + 4 * SMALL..BASE + 5 * SMALL, 0x5000, true),
            Ok(())
        );
        table.unmap(BASE..BASE + LARGE);
        // Each keeps the table that both are in.
        table.release(first.clone());
        assert_eq!(table.map(second.clone(), 0x5000, true), Ok(()));
        table.unmap(second.clone());
        table.prepare(first.clone())?;
        table.release(second.clone());
        assert_eq!(table.map(first.clone(), 0x5000, true), Ok(()));
        assert_eq!(
            table.map(BASE + LARGE..BASE + LARGE + SMALL, 0x5000, true),
            Err(EFAULT)
        );
        table.unmap(first.clone());
        assert!(!is_bare());
        table.release(first.clone());
        assert!(is_bare());
        // What was not prepared, and what cannot be.
        table.release(first);
        table.release(LIMIT - LARGE..LIMIT + LARGE);
        assert_eq!(table.leaves(), (0, 0));
        Ok(())
    }

    #[test]
    fn prepared_bits() -> Result {
        let mut lowest = Lowest::new()?;
        let page = |n: usize| BASE + n * SMALL;

        for (from, to) in [(0, 1), (63, 64), (63, 65), (10, 500), (511, 512), (0, 512)] {
            let span = page(from)..page(to);

            assert!(!lowest.is_prepared(&span));
            lowest.set_prepared(&span, true);
            assert!(lowest.is_prepared(&span));
            let ones: u32 = lowest.prepared.iter().map(|word| word.count_ones()).sum();
            assert_eq!(ones as usize, to - from);
            lowest.set_prepared(&span, false);
            assert!(!lowest.is_wanted());
        }
        Ok(())
    }

    /// Random maps and unmaps against a plain array.
    #[test]
    fn against_model() -> Result {
        const PAGES: usize = 3 * 512;

        let table = table(BASE..BASE + PAGES * SMALL)?;
        let mut model = KVVec::from_elem(None, PAGES, GFP_KERNEL)?;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |limit: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % limit as u64) as usize
        };

        for round in 0..200_u64 {
            // Whole blocks often enough, so that there are large leaves.
            let (start, len) = if round % 3 == 0 {
                (next(3) * 512, 512)
            } else {
                let start = next(PAGES);
                (start, 1 + next(PAGES - start))
            };
            let span = BASE + start * SMALL..BASE + (start + len) * SMALL;
            let write = round % 2 == 0;
            let base = (round + 1) << 32;

            if round % 5 == 4 {
                table.unmap(span);
            } else {
                table.map(span, base, write)?;
            }
            for (i, slot) in model.iter_mut().skip(start).take(len).enumerate() {
                *slot = (round % 5 != 4).then_some((base + (i * SMALL) as u64, write));
            }
            let wrong = model.iter().enumerate().find(|(i, expected)| {
                dma(&table, BASE + i * SMALL).map(|(dma, _, write)| (dma, write)) != **expected
            });

            assert!(wrong.is_none());
        }
        table.unmap(BASE..BASE + PAGES * SMALL);
        assert_eq!(table.leaves(), (0, 0));
        Ok(())
    }
}
