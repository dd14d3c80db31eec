//! The trace that an event or a request belongs to (W3C Trace Context).

use std::fmt;
use std::str::FromStr;

/// `00-<trace id>-<span id>-<flags>` in lower-case hex digits, neither id all zeros (W3C Trace
/// Context, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// Text is no `traceparent` of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a traceparent must be 00-<32 hex digits>-<16>-<2> (W3C Trace Context)")]
pub struct InvalidTraceParent;

/// The flag that says: whoever records traces should record this one.
const SAMPLED: u8 = 1;

impl TraceParent {
    /// The length of its text, in bytes.
    pub const LENGTH: usize = 55;

    /// `None` where an id is zero, which means that there is none.
    pub fn new(trace_id: u128, span_id: u64, flags: u8) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            flags,
        })
    }

    /// The trace.
    pub fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The span in it that this is about.
    pub fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Every flag, those of later versions included.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let part = parts.next().ok_or(InvalidTraceParent)?;
            let is_hex = part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if part.len() != length || !is_hex {
                return Err(InvalidTraceParent);
            }
            u128::from_str_radix(part, 16).map_err(|_| InvalidTraceParent)
        };
        let (version, trace_id) = (part(2)?, part(32)?);
        let span_id = u64::try_from(part(16)?).map_err(|_| InvalidTraceParent)?;
        let flags = u8::try_from(part(2)?).map_err(|_| InvalidTraceParent)?;
        if version != 0 || parts.next().is_some() {
            return Err(InvalidTraceParent);
        }
        Self::new(trace_id, span_id, flags).ok_or(InvalidTraceParent)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            flags,
        } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn it_is_read_as_the_specification_writes_it() {
        let parent: TraceParent = GOOD.parse().unwrap();
        assert_eq!(parent.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(parent.span_id(), 0x00f0_67aa_0ba9_02b7);
        assert!(parent.is_sampled());
        let unsampled = GOOD.replace("-01", "-02");
        assert!(!unsampled.parse::<TraceParent>().unwrap().is_sampled());
    }

    #[test]
    fn anything_else_is_none() {
        for bad in [
            "",
            "00",
            &GOOD.replace("00-4", "01-4"),
            &GOOD.to_uppercase(),
            &format!("{GOOD}-"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("-01", "-+1"),
            &GOOD[1..],
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(InvalidTraceParent), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_one_comes_back_as_it_was_written(trace in 1u128.., span in 1u64.., flags: u8) {
            let parent = TraceParent::new(trace, span, flags).unwrap();
            let text = parent.to_string();
            prop_assert_eq!(text.len(), TraceParent::LENGTH);
            prop_assert_eq!(text.parse(), Ok(parent));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<TraceParent>();
        }
    }
}
