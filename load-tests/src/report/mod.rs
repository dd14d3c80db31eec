//! What a run came to, for people ([`table`], [`html`]) and programs (JSON).

pub(crate) mod html;
pub(crate) mod plots;
pub(crate) mod progress;
pub(crate) mod result;
pub(crate) mod table;
