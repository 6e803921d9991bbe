// SPDX-License-Identifier: GPL-2.0

//! The run list of the firmware's scheduler, as `kfd_packet_manager.c` builds it: processes, each
//! followed by its queues.

use super::pm4::{self, Header, MapProcess, MapQueue, Packet};

/// A process of the run list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its address space.
    pub map: MapProcess,
    /// Its queues.
    pub queues: Vec<MapQueue>,
    /// The VMID that it has while it is mapped.
    pub vmid: Option<u8>,
}

/// Splits a run list. A list that does not fit on the hardware ends with a jump to its begin.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse(list: &[u32]) -> Result<Vec<Process>, String> {
    let mut processes: Vec<Process> = Vec::new();
    let mut rest = list;
    while let Some((first, after)) = rest.split_first() {
        let (opcode, body) = match pm4::header(*first) {
            Header::Filler => {
                rest = after;
                continue;
            }
            Header::Type3 { opcode, body } => (opcode, body as usize),
            Header::Unknown => return Err(format!("header {first:#010x}")),
        };
        let (Some(body), Some(next)) = (after.get(..body), after.get(body..)) else {
            return Err(format!("packet {first:#010x} is cut off"));
        };
        rest = next;
        let packet = pm4::decode(opcode, body);
        match packet.map_err(|error| format!("packet {first:#010x}: {error:?}"))? {
            Packet::Nothing | Packet::ReleaseMem { .. } => {}
            Packet::MapProcess(map) => {
                processes.push(Process { map, queues: Vec::new(), vmid: None });
            }
            Packet::MapQueue(queue) => match processes.last_mut() {
                Some(process) => process.queues.push(queue),
                None => return Err("a queue without a process".to_string()),
            },
            Packet::RunList { chain: true, .. } => break,
            other => return Err(format!("{other:?}")),
        }
    }
    Ok(processes)
}

/// The first VMID of `allowed` that nobody has.
pub fn free_vmid(allowed: u16, processes: &[Process]) -> Option<u8> {
    let used = processes.iter().filter_map(|process| process.vmid);
    let used = used.fold(0u16, |mask, vmid| mask | 1u16.checked_shl(vmid.into()).unwrap_or(0));
    let free = allowed & !used;
    (free != 0).then(|| free.trailing_zeros() as u8)
}

#[cfg(test)]
mod tests {
    use amdgpu_regs::pm4 as op;

    use super::*;

    fn packet3(opcode: u32, body: &[u32]) -> Vec<u32> {
        let mut packet = vec![3 << 30 | opcode << 8 | (body.len() as u32 - 1) << 16];
        packet.extend(body);
        packet
    }

    fn process(pasid: u32) -> Vec<u32> {
        let mut body = [0; 20];
        body[0] = pasid;
        packet3(op::IT_MAP_PROCESS, &body)
    }

    fn queue(doorbell: u32) -> Vec<u32> {
        packet3(op::IT_MAP_QUEUES, &[1 << 4 | 1 << 29, doorbell << 2, 0x1000, 0, 0x2000, 0])
    }

    #[test]
    fn lists_are_split() {
        let list = [
            process(0x8001),
            queue(0x400),
            queue(0x402),
            process(0x8002),
            queue(0x800),
            packet3(op::IT_RUN_LIST, &[0x1000, 0, 20 | 1 << 20 | 1 << 23]),
        ]
        .concat();
        let processes = parse(&list).unwrap();
        let found: Vec<(u16, Vec<u32>)> = processes
            .iter()
            .map(|p| (p.map.pasid, p.queues.iter().map(|q| q.doorbell).collect()))
            .collect();
        assert_eq!(found, [(0x8001, vec![0x400, 0x402]), (0x8002, vec![0x800])]);
    }

    #[test]
    fn hostile_lists_are_refused() {
        assert!(parse(&queue(1)).is_err());
        assert!(parse(&process(1)[..5]).is_err());
        assert!(parse(&[0]).is_err());
        assert!(parse(&packet3(op::IT_DISPATCH_DIRECT, &[1, 1, 1, 1])).is_err());
        assert_eq!(parse(&[]), Ok(vec![]));
    }

    #[test]
    fn vmids_run_out() {
        let mut processes = parse(&[process(1), process(2)].concat()).unwrap();
        assert_eq!(free_vmid(0x300, &processes), Some(8));
        processes[0].vmid = Some(8);
        assert_eq!(free_vmid(0x300, &processes), Some(9));
        processes[1].vmid = Some(9);
        assert_eq!(free_vmid(0x300, &processes), None);
    }
}
