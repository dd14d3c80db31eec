//! What the machine says: `/proc` of the servers, and whether this machine can hold a run at all.

pub(crate) mod capacity;
pub(crate) mod gateway;
pub(crate) mod memory;
pub(crate) mod process;
