//! The console's page, one file without outside assets.
//!
//! Its charts are drawn by some hundred lines of its own, as SVG, and by no library. The well-kept
//! small one, uPlot (1.6), would get along with the policy, but it draws on a canvas: colours had
//! to be read back from the style, and all drawn anew when the scheme changes between light and
//! dark; bars that are stacked were ours to write; and what is drawn could be read neither by a
//! screen reader nor by the tests. Its 51 KB would treble the page and spare few of those lines.

use std::sync::LazyLock;

use crate::http::page_policy;

pub(super) const PAGE: &str = include_str!("page.html");

/// Names of channels and replicas come from outside: the page runs its own script and nothing else.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| page_policy(PAGE));
