//! Whether this machine can hold what is asked; a run that cannot be held is refused, not shrunk.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Well below the 28,232 ports of Linux's usual range, so that finding a free one stays quick.
pub(crate) const CONNECTIONS_PER_SOURCE: u32 = 4_000;

/// What a client process needs beside its connections: epoll, waker, pipes, a few to spare.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Two sockets, their queues, and a client's own memory; measured at about 9 KB and rounded up.
const BYTES_PER_CONNECTION: u64 = 16 << 10;

/// Lifts the soft descriptor limit to the hard one.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )
        .context("raising the descriptor limit")?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Connections one client process can hold under `descriptor_limit`.
pub(crate) fn connections_per_process(descriptor_limit: u64) -> u32 {
    u32::try_from(descriptor_limit.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(u32::MAX)
}

/// How many client processes hold `clients`; refuses when `asked_processes` are too few.
pub(crate) fn processes_for(
    clients: u32,
    descriptor_limit: u64,
    asked_processes: Option<u32>,
) -> Result<u32> {
    let each = connections_per_process(descriptor_limit);
    ensure!(
        each > 0,
        "the descriptor limit of {descriptor_limit} leaves no room for a connection: raise `ulimit -n`"
    );
    let needed = clients.div_ceil(each).max(1);
    let processes = asked_processes.unwrap_or(needed);
    ensure!(
        processes >= needed,
        "{clients} clients do not fit {processes} processes of {each} connections each \
         (descriptor limit {descriptor_limit}): raise `ulimit -n`, or allow {needed} with --processes"
    );
    Ok(processes)
}

/// Refuses what the machine as a whole cannot hold.
pub(crate) fn check_machine(clients: u32) -> Result<()> {
    let clients = u64::from(clients);
    let files: u64 = read_number("/proc/sys/fs/file-max")?;
    // Both ends of a connection may be on this machine.
    ensure!(
        clients * 2 < files,
        "{clients} clients need {} open files, fs.file-max allows {files}",
        clients * 2
    );
    let available = available_memory_bytes()?;
    let needed = clients * BYTES_PER_CONNECTION;
    ensure!(
        needed < available,
        "{clients} clients need about {} MiB beside the server's memory, {} MiB are available",
        needed >> 20,
        available >> 20
    );
    Ok(())
}

/// Refuses more connections than the ports towards `servers` distinct addresses allow from one source.
pub(crate) fn check_ports_of_one_source(clients: u32, servers: usize) -> Result<()> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ends = range
        .split_whitespace()
        .filter_map(|end| end.parse::<u64>().ok());
    let (low, high) = ends
        .next()
        .zip(ends.next())
        .context("ip_local_port_range")?;
    let ports = (high - low + 1) * u64::try_from(servers)?;
    ensure!(
        u64::from(clients) < ports,
        "{clients} clients do not fit the {ports} ports towards {servers} server addresses outside loopback"
    );
    Ok(())
}

fn read_number(path: &str) -> Result<u64> {
    fs::read_to_string(path)?
        .trim()
        .parse()
        .with_context(|| path.to_owned())
}

fn available_memory_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kilobytes: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("MemAvailable in /proc/meminfo")?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_processes_as_descriptors_demand() {
        assert_eq!(processes_for(1, 20_000, None).unwrap(), 1);
        assert_eq!(processes_for(19_936, 20_000, None).unwrap(), 1);
        assert_eq!(processes_for(19_937, 20_000, None).unwrap(), 2);
        assert_eq!(processes_for(100_000, 20_000, None).unwrap(), 6);
        assert_eq!(processes_for(10, 20_000, Some(3)).unwrap(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let refusal = processes_for(50_000, 20_000, Some(2))
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("allow 3 with --processes"), "{refusal}");
        assert!(processes_for(1, 10, None).is_err());
        assert!(check_machine(u32::MAX).is_err());
        assert!(check_ports_of_one_source(1_000_000, 1).is_err());
    }
}
