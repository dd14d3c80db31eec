//! `fanfare-load`: measures Fanfare, or any other Server-Sent Events server.
fn main() {}
