//! What takes minutes, or needs root: `make test-faults`.

mod hosts;
mod load;
mod machine;
mod network;
