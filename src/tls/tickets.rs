//! Session tickets that every replica can read (RFC 8446, section 4.6.1; RFC 5077).

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::server::ProducesTickets;

/// How long a client may resume with a ticket: twelve hours, in seconds.
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

/// The bytes of a key in its file, before base64.
const SECRET_BYTES: usize = 64;

/// Names the key that a ticket was encrypted with.
const NAME_BYTES: usize = 16;

/// When it was issued, in Unix seconds, before the session's own bytes.
const TIME_BYTES: usize = 8;

/// A key that tickets are encrypted with.
#[derive(Clone)]
pub struct TicketKey {
    name: [u8; NAME_BYTES],
    key: Arc<LessSafeKey>,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

/// Reads a file of keys: one per line in base64, the one that encrypts first.
///
/// # Errors
/// With the line that breaks a rule, and never with a part of it.
pub(super) fn read_keys(content: &[u8]) -> Result<Vec<TicketKey>, String> {
    let text = std::str::from_utf8(content).map_err(|_| "must contain ASCII text".to_owned())?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let keys: Vec<_> = lines
        .map(|(number, line)| {
            let secret = BASE64_STANDARD.decode(line.trim()).ok();
            let secret = secret.filter(|secret| secret.len() == SECRET_BYTES);
            secret
                .and_then(|secret| TicketKey::new(&secret))
                .ok_or_else(|| {
                    format!(
                        "line {} must be a key of {SECRET_BYTES} bytes in base64 \
                     (openssl rand -base64 {SECRET_BYTES} | tr -d '\\n')",
                        number + 1
                    )
                })
        })
        .collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("contains no key".to_owned());
    }
    Ok(keys)
}

impl TicketKey {
    /// `None`: the system's cryptography refuses.
    fn new(secret: &[u8]) -> Option<Self> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"fanfare session tickets").extract(secret);
        let mut name = [0; NAME_BYTES];
        let mut key = [0; 32];
        secret
            .expand(&[b"name"], Length(NAME_BYTES))
            .ok()?
            .fill(&mut name)
            .ok()?;
        secret
            .expand(&[b"key"], Length(32))
            .ok()?
            .fill(&mut key)
            .ok()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).ok()?);
        Some(Self {
            name,
            key: Arc::new(key),
        })
    }

    fn encrypt(&self, session: &[u8], now_seconds: u64) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut sealed = [&now_seconds.to_be_bytes()[..], session].concat();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&self.name),
                &mut sealed,
            )
            .ok()?;
        Some([&self.name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, nonce: [u8; NONCE_LEN], sealed: &[u8], now_seconds: u64) -> Option<Vec<u8>> {
        let mut sealed = sealed.to_vec();
        let opened = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&self.name),
                &mut sealed,
            )
            .ok()?;
        let (issued, session) = opened.split_first_chunk::<TIME_BYTES>()?;
        let age = now_seconds.saturating_sub(u64::from_be_bytes(*issued));
        (age <= u64::from(LIFETIME_SECONDS)).then(|| session.to_vec())
    }
}

/// How many bytes are derived.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The keys in force: the first encrypts, all decrypt.
pub(super) struct Tickets(ArcSwap<Vec<TicketKey>>);

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    pub(super) fn new(keys: Vec<TicketKey>) -> Self {
        Self(ArcSwap::from_pointee(keys))
    }

    pub(super) fn replace(&self, keys: Vec<TicketKey>) {
        self.0.store(Arc::new(keys));
    }
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.load().first()?.encrypt(plain, now_seconds())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = cipher.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.name == *name)?;
        key.decrypt(*nonce, sealed, now_seconds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: &[u8]) -> Vec<TicketKey> {
        let lines: Vec<_> = of
            .iter()
            .map(|byte| BASE64_STANDARD.encode([*byte; SECRET_BYTES]))
            .collect();
        read_keys(lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn a_ticket_is_read_by_every_replica_that_has_its_key() {
        let one = Tickets::new(keys(&[1]));
        let ticket = one.encrypt(b"session").unwrap();
        assert_ne!(ticket, one.encrypt(b"session").unwrap(), "a fresh nonce");
        let other = Tickets::new(keys(&[2, 1]));
        assert_eq!(other.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(Tickets::new(keys(&[2])).decrypt(&ticket), None);
        for at in [0, NAME_BYTES, ticket.len() - 1] {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(other.decrypt(&changed), None);
        }
        assert_eq!(other.decrypt(&ticket[..20]), None);
    }

    #[test]
    fn a_ticket_expires() {
        let key = keys(&[1]).remove(0);
        let ticket = key.encrypt(b"session", 1_000_000).unwrap();
        let (nonce, sealed) = ticket[NAME_BYTES..].split_first_chunk().unwrap();
        let lifetime = u64::from(LIFETIME_SECONDS);
        assert!(key.decrypt(*nonce, sealed, 1_000_000 + lifetime).is_some());
        assert!(key.decrypt(*nonce, sealed, 1_000_001 + lifetime).is_none());
    }

    #[test]
    fn a_wrong_key_is_named_by_its_line() {
        let good = BASE64_STANDARD.encode([7; SECRET_BYTES]);
        let short = BASE64_STANDARD.encode([7; 32]);
        let fault = read_keys(format!("{good}\n\n{short}\n").as_bytes()).unwrap_err();
        assert!(
            fault.starts_with("line 3 must be a key of 64 bytes"),
            "{fault}"
        );
        assert!(!fault.contains(&short), "{fault}");
        assert_eq!(read_keys(b"\n").unwrap_err(), "contains no key");
    }
}
