// SPDX-License-Identifier: GPL-2.0

//! The MMU's view of the GPU.

use super::walk::Tables;
use super::{Access, Aperture, Context, Host, Hub, Invalidate, Mmu, Space};
use crate::gpu::Gpu;
use crate::hub;
use crate::mem::Memory;
use crate::report::Kind;

/// The name of the MMU in reports.
const NAME: &str = "gpuvm";

impl Host for Gpu {
    fn memory(&self, space: Space) -> &dyn Memory {
        match space {
            Space::Vram => self.vram.as_ref(),
            Space::System => self.system.as_ref(),
        }
    }

    fn context(&self, hub: Hub, vmid: u8) -> Context {
        let context = Gpu::context(self, hub, vmid);
        let tables = Tables {
            root: context.root,
            depth: context.depth,
            block_size: context.block_size,
            start: context.start,
            end: context.end,
        };
        Context { tables, enabled: context.enabled, retry: context.retry }
    }

    fn aperture(&self, hub: Hub) -> Aperture {
        let aperture = Gpu::aperture(self, hub);
        Aperture { fb: aperture.fb, agp: aperture.agp, agp_base: aperture.agp_base }
    }

    fn walked(&self) {
        self.counters.walks.add(1);
    }

    fn hit(&self) {
        self.counters.tlb_hits.add(1);
    }

    fn moved(&self, space: Space, access: Access, bytes: u64) {
        match (space, access) {
            (Space::Vram, _) => {}
            (Space::System, Access::Write) => self.counters.dma_write.add(bytes),
            (Space::System, _) => self.counters.dma_read.add(bytes),
        }
    }

    fn stale(&self, text: String) {
        self.report.error(Kind::StaleTlb, NAME, text);
    }

    fn lost(&self, text: String) {
        self.report.error(Kind::LostPage, NAME, text);
    }
}

impl hub::Invalidator for Mmu {
    fn invalidate(&self, _gpu: &Gpu, hub: Hub, request: &hub::Invalidate) {
        let range = request.pages.as_ref().map(|pages| {
            let first = pages.start.saturating_mul(super::walk::PAGE_SIZE);
            (first, pages.end.saturating_mul(super::walk::PAGE_SIZE).saturating_sub(1))
        });
        Mmu::invalidate(self, hub, Invalidate { vmids: request.vmids, range });
    }
}
