//! The `fanfare` command.

use std::process::ExitCode;

/// Returns freed memory to the system soon, and is quick where every delivery passes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fanfare::cli::main()
}
