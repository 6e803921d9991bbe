// SPDX-License-Identifier: GPL-2.0

use std::sync::Mutex as StdMutex;

use amdgpu_regs::pte;

use super::*;
use crate::mem::TestMemory;

const V: u64 = pte::AMDGPU_PTE_VALID;
const S: u64 = pte::AMDGPU_PTE_SYSTEM;
const R: u64 = pte::AMDGPU_PTE_READABLE;
const W: u64 = pte::AMDGPU_PTE_WRITEABLE;
const X: u64 = pte::AMDGPU_PTE_EXECUTABLE;
const PRT: u64 = pte::AMDGPU_PTE_PRT;

const TABLE: u64 = 0x8000;
const FB: u64 = 0x80_0000_0000;

/// A GPU with one flat table of 16 pages from address 0, in VRAM at [`TABLE`].
struct Fake {
    vram: TestMemory,
    system: TestMemory,
    retry: bool,
    stale: StdMutex<Vec<String>>,
    lost: StdMutex<Vec<String>>,
}

impl Fake {
    fn new() -> Self {
        Self {
            vram: TestMemory::new(0, 0x10_0000),
            system: TestMemory::new(0x4000_0000, 0x10_0000),
            retry: true,
            stale: StdMutex::default(),
            lost: StdMutex::default(),
        }
    }

    fn map(&self, page: u64, entry: u64) {
        self.vram.store64(TABLE + page * 8, entry).unwrap();
    }
}

impl Host for Fake {
    fn memory(&self, space: Space) -> &dyn Memory {
        match space {
            Space::Vram => &self.vram,
            Space::System => &self.system,
        }
    }

    fn context(&self, _hub: Hub, _vmid: u8) -> Context {
        let tables = Tables { root: TABLE | V, depth: 0, block_size: 0, start: 0, end: 15 };
        Context { tables, enabled: true, retry: self.retry }
    }

    fn aperture(&self, _hub: Hub) -> Aperture {
        Aperture { fb: FB..FB + 0x10_0000, agp: 0..0x100_0000, agp_base: 0 }
    }

    fn stale(&self, text: String) {
        self.stale.lock().unwrap().push(text);
    }

    fn lost(&self, text: String) {
        self.lost.lock().unwrap().push(text);
    }
}

fn by(vmid: u8) -> Requester {
    let writer = Writer { engine: "sdma0", queue: 1, rptr: 0x40 };
    Requester { hub: Hub::Mm, vmid, no_retry: false, writer }
}

#[test]
fn accesses_cross_pages_and_memories() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, 0x4000_1000 | V | S | R | W);
    fake.map(2, 0x3000 | V | R | W);
    let data: Vec<u8> = (0..64).collect();
    mmu.write(&fake, &by(3), 0x1fe0, &data).unwrap();
    let mut back = [0; 64];
    mmu.read(&fake, &by(3), 0x1fe0, &mut back).unwrap();
    assert_eq!(back, data[..]);
    let mut raw = [0; 32];
    fake.system.read(0x4000_1fe0, &mut raw).unwrap();
    assert_eq!(raw, data[..32]);
    fake.vram.read(0x3000, &mut raw).unwrap();
    assert_eq!(raw, data[32..]);
}

#[test]
fn a_write_stops_at_the_first_page_that_faults() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, 0x1000 | V | R | W);
    let fault = mmu.write(&fake, &by(3), 0x1ff8, &[1; 16]).unwrap_err();
    assert_eq!((fault.addr, fault.cause, fault.retry), (0x2000, Cause::Invalid, true));
    assert_eq!(fake.vram.load64(0x1ff8).unwrap(), 0x0101_0101_0101_0101);
}

#[test]
fn rights() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, 0x1000 | V | R);
    let mut byte = [0];
    mmu.read(&fake, &by(3), 0x1000, &mut byte).unwrap();
    let fault = mmu.write(&fake, &by(3), 0x1000, &[1]).unwrap_err();
    assert_eq!((fault.cause, fault.retry), (Cause::Permission, true));
    let fault = mmu.fetch(&fake, &by(3), 0x1000, &mut byte).unwrap_err();
    assert_eq!((fault.cause, fault.access), (Cause::Permission, Access::Execute));
    // A right that is added counts without an invalidation.
    fake.map(1, 0x1000 | V | R | W | X);
    mmu.write(&fake, &by(3), 0x1000, &[1]).unwrap();
    mmu.fetch(&fake, &by(3), 0x1000, &mut byte).unwrap();
}

#[test]
fn who_may_retry() {
    let (mut fake, mmu) = (Fake::new(), Mmu::new());
    let mut byte = [0];
    assert!(mmu.read(&fake, &by(3), 0x1000, &mut byte).unwrap_err().retry);
    let shader = Requester { no_retry: true, ..by(3) };
    assert!(!mmu.read(&fake, &shader, 0x1000, &mut byte).unwrap_err().retry);
    // The driver's way to end a retry.
    fake.map(1, V | S | PRT);
    assert!(!mmu.read(&fake, &by(3), 0x1000, &mut byte).unwrap_err().retry);
    let fault = mmu.read(&fake, &by(3), 0x1_0000, &mut byte).unwrap_err();
    assert_eq!((fault.cause, fault.retry), (Cause::Range, false));
    fake.retry = false;
    assert!(!mmu.read(&fake, &by(3), 0x2000, &mut byte).unwrap_err().retry);
}

#[test]
fn partially_resident_pages_are_zero() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, PRT);
    let mut bytes = [1; 8];
    mmu.write(&fake, &by(3), 0x1000, &[5; 8]).unwrap();
    mmu.read(&fake, &by(3), 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn vram_aperture_is_of_vmid_0_alone() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    mmu.write(&fake, &by(0), FB + 0x2000, &[7; 4]).unwrap();
    assert_eq!(fake.vram.load32(0x2000).unwrap(), 0x0707_0707);
    let fault = mmu.write(&fake, &by(3), FB + 0x2000, &[7; 4]).unwrap_err();
    assert_eq!(fault.cause, Cause::Range);
}

#[test]
fn translations_stay_until_they_are_invalidated() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.vram.store32(0x1000, 1).unwrap();
    fake.vram.store32(0x2000, 2).unwrap();
    fake.map(1, 0x1000 | V | R);
    let read = |mmu: &Mmu| {
        let mut bytes = [0; 4];
        mmu.read(&fake, &by(3), 0x1000, &mut bytes).map(|()| u32::from_le_bytes(bytes))
    };
    assert_eq!(read(&mmu), Ok(1));
    // The driver changes the entry by its SDMA ring and forgets the flush.
    let entry = (0x2000 | V | R).to_le_bytes();
    mmu.write(&fake, &by(0), FB + TABLE + 8, &entry).unwrap();
    assert_eq!(read(&mmu), Ok(1));
    assert!(fake.stale.lock().unwrap().is_empty(), "reported before the driver had time");
    mmu.set_grace(Duration::ZERO);
    assert_eq!(read(&mmu), Ok(1));
    assert_eq!(read(&mmu), Ok(1));
    {
        let stale = fake.stale.lock().unwrap();
        assert_eq!(stale.len(), 1, "each translation is reported once");
        for part in ["vmid 3", "0x1000", "0x1021", "0x2021", "sdma0 queue 1 at rptr 0x40"] {
            assert!(stale[0].contains(part), "{part} is missing: {}", stale[0]);
        }
    }
    // Another VMID's flush, and the other hub's, do not help; the right one does.
    mmu.invalidate(Hub::Mm, Invalidate { vmids: 1 << 4, range: None });
    mmu.invalidate(Hub::Gfx, Invalidate { vmids: 1 << 3, range: None });
    assert_eq!(read(&mmu), Ok(1));
    mmu.invalidate(Hub::Mm, Invalidate { vmids: 1 << 3, range: None });
    assert_eq!(read(&mmu), Ok(2));
    fake.map(1, 0);
    mmu.invalidate(Hub::Mm, Invalidate { vmids: 1 << 3, range: Some((0x1000, 0x1fff)) });
    assert_eq!(read(&mmu).unwrap_err().cause, Cause::Invalid);
    assert_eq!(fake.stale.lock().unwrap().len(), 1);
}

#[test]
fn memory_that_is_gone_is_reported_with_the_entry() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, 0x9999_0000 | V | S | R);
    let mut bytes = [0; 4];
    let fault = mmu.read(&fake, &by(3), 0x1004, &mut bytes).unwrap_err();
    assert!(matches!(fault.cause, Cause::Lost(_)) && !fault.retry);
    let lost = fake.lost.lock().unwrap();
    assert_eq!(lost.len(), 1);
    assert!(lost[0].contains("0x99990004") && lost[0].contains("0x8008"), "{}", lost[0]);
}

#[test]
fn an_invalidation_waits_for_the_access_that_is_under_way() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    fake.map(1, 0x1000 | V | R | W);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for value in 0..2000u32 {
                // After the unmap only faults are allowed, and no write.
                if mmu.write(&fake, &by(3), 0x1000, &value.to_le_bytes()).is_err() {
                    return;
                }
            }
        });
        fake.map(1, 0);
        mmu.invalidate(Hub::Mm, Invalidate { vmids: 1 << 3, range: None });
        let seen = fake.vram.load32(0x1000).unwrap();
        writer.join().unwrap();
        assert_eq!(fake.vram.load32(0x1000).unwrap(), seen, "written after the invalidation");
    });
}

#[test]
fn dump_is_canonical() {
    let fake = Fake::new();
    fake.map(1, 0x5000 | V | R | W);
    fake.map(2, 0x6000 | V | R | W);
    fake.map(3, 0x6000 | V | R);
    fake.map(9, 0x4000_0000 | V | S | R);
    let tables = fake.context(Hub::Mm, 3).tables;
    assert_eq!(
        dump::dump(&fake, &tables, dump::Options::default()),
        "0x000000001000-0x000000003000 vram r w mtype 0\n\
         0x000000003000-0x000000004000 vram r mtype 0\n\
         0x000000009000-0x00000000a000 system r mtype 0\n"
    );
    let physical = dump::dump(&fake, &tables, dump::Options { physical: true });
    assert!(physical.contains("vram at 0x5000 fragment 0 r w"), "{physical}");
}

#[test]
fn what_was_written_before_a_translation_was_cached_does_not_count() {
    let (fake, mmu) = (Fake::new(), Mmu::new());
    let entry = (0x1000 | V | R).to_le_bytes();
    mmu.write(&fake, &by(0), FB + TABLE + 8, &entry).unwrap();
    std::thread::sleep(Duration::from_millis(40));
    mmu.set_grace(Duration::from_millis(30));
    let mut bytes = [0; 4];
    mmu.read(&fake, &by(3), 0x1000, &mut bytes).unwrap();
    // The CPU takes the mapping away: from now on the driver has its time.
    fake.map(1, 0);
    mmu.read(&fake, &by(3), 0x1000, &mut bytes).unwrap();
    assert!(fake.stale.lock().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(40));
    mmu.read(&fake, &by(3), 0x1000, &mut bytes).unwrap();
    assert_eq!(fake.stale.lock().unwrap().len(), 1);
}
