//! What an event of a run carries, at fixed places so that reading it costs a few nanoseconds:
//! `f`, run (8 hex), channel (8 hex), sequence (8 hex), intended send time in ns (16 hex), then padding.

/// The least size of an event's data.
pub(crate) const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 16;

/// Sequence numbers count from 1; 0 marks a warm-up event, which is never measured.
pub(crate) const WARM_UP: u32 = 0;

/// Tells this run's events from any other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunTag([u8; 8]);

impl RunTag {
    pub(crate) fn new(run: u32) -> Self {
        Self(hex8(run))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) channel: u32,
    pub(crate) sequence: u32,
    pub(crate) intended_ns: u64,
}

impl Payload {
    /// Appends the event's data, `bytes` long in all (never less than [`HEAD_BYTES`]).
    pub(crate) fn encode(self, run: RunTag, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes.max(HEAD_BYTES);
        let (high, low) = halves(self.intended_ns);
        out.push(b'f');
        out.extend_from_slice(&run.0);
        out.extend_from_slice(&hex8(self.channel));
        out.extend_from_slice(&hex8(self.sequence));
        out.extend_from_slice(&hex8(high));
        out.extend_from_slice(&hex8(low));
        out.resize(end, b'.');
    }

    /// `None`: not an event of this run. Digits are not validated one by one: a damaged number
    /// shows as a broken sequence.
    #[inline]
    pub(crate) fn decode(run: RunTag, data: &[u8]) -> Option<Self> {
        let (b'f', rest) = data.split_first()? else {
            return None;
        };
        let (tag, rest) = rest.split_first_chunk::<8>()?;
        let (channel, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (high, rest) = rest.split_first_chunk::<8>()?;
        let (low, _) = rest.split_first_chunk::<8>()?;
        (*tag == run.0).then(|| Self {
            channel: parse_hex8(*channel),
            sequence: parse_hex8(*sequence),
            intended_ns: u64::from(parse_hex8(*high)) << 32 | u64::from(parse_hex8(*low)),
        })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves of a u64")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn hex8(value: u32) -> [u8; 8] {
    let mut shift = 32;
    std::array::from_fn(|_| {
        shift -= 4;
        let nibble = value >> shift & 0xf;
        char::from_digit(nibble, 16).map_or(b'0', |digit| u8::try_from(digit).unwrap_or(b'0'))
    })
}

/// Eight lower-case hex digits at once: each byte to its nibble, then neighbours joined three times.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "32 bits remain after the last join"
)]
fn parse_hex8(digits: [u8; 8]) -> u32 {
    let bytes = u64::from_be_bytes(digits);
    let letters = bytes >> 6 & 0x0101_0101_0101_0101;
    let nibbles = (bytes & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
    let pairs = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    (quads | quads >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let run = RunTag::new(0xdead_beef);
        for value in [0, 1, 9, 10, 0x1234_5678, 0x9abc_def0, u32::MAX] {
            let payload = Payload {
                channel: value,
                sequence: !value,
                intended_ns: u64::from(value) << 31 | 0xabcd,
            };
            let mut data = Vec::new();
            payload.encode(run, 100, &mut data);
            assert_eq!(data.len(), 100);
            assert_eq!(Payload::decode(run, &data), Some(payload));
            assert_eq!(Payload::decode(RunTag::new(1), &data), None);
            assert_eq!(Payload::decode(run, &data[..HEAD_BYTES - 1]), None);
        }
    }

    #[test]
    fn a_size_below_the_head_is_the_head() {
        let mut data = Vec::new();
        let payload = Payload {
            channel: 1,
            sequence: 2,
            intended_ns: 3,
        };
        payload.encode(RunTag::new(1), 0, &mut data);
        assert_eq!(data.len(), HEAD_BYTES);
    }
}
