//! Who a request is from, and what its token grants.
//!
//! A request's credential ([`credentials`]) is a token, or a ticket that was drawn with one. A token is
//! [verified](token) with the [keys] of the [`ring`], which reads files and the [JWK set](jwks) again
//! on the control runtime, and [grants] rights. What follows for a request is decided in `http`.
//!
//! [`token`], [`keys`], [`credentials`] and [`grants`] do no input or output.

mod credentials;
mod grants;
mod jwks;
mod keys;
mod ring;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use self::credentials::{Credential, GivenTwice, credential};
pub(crate) use self::grants::any_matches;
pub use self::grants::{Grants, TokenChannels};
pub(crate) use self::jwks::FETCH_DEADLINE;
pub use self::jwks::Jwks;
pub use self::keys::Key;
pub(crate) use self::ring::NotVerified;
pub use self::ring::{KeyFile, KeyRing};
pub(crate) use self::token::{MAX_TOKEN_BYTES, VerifiedClaims, read_header as read_token_header};
pub use self::token::{TokenFault, TokenRules};
