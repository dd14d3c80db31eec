//! What the machine says, `/proc` of the servers and whether it can hold a run at all, and what
//! gateways say of themselves.

pub(crate) mod capacity;
pub(crate) mod gateway;
pub(crate) mod memory;
pub(crate) mod process;
