//! The keys in force: every source's newest set, kept current on the control runtime and read by
//! the shards without a lock.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::jwks::{Jwks, Refetched};
use super::keys::{self, Key};
use super::token::{TokenFault, TokenRules, VerifiedClaims, verify};
use crate::files::{self, Content, FileWatch};
use crate::tasks::Tasks;

/// A file that holds keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// A shared secret; a line end behind it is not part of it.
    Secret(PathBuf),
    /// Public keys in PEM.
    PublicKeys(PathBuf),
}

impl KeyFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Secret(path) | Self::PublicKeys(path) => path,
        }
    }

    /// What is in it.
    ///
    /// # Errors
    /// When it cannot be read, or breaks a rule; never with a part of it.
    pub fn read(&self) -> Result<Vec<Key>, String> {
        self.parse(&files::read(self.path())?)
    }

    fn parse(&self, content: &[u8]) -> Result<Vec<Key>, String> {
        match self {
            Self::Secret(_) => {
                let secret = content.strip_suffix(b"\n").unwrap_or(content);
                let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
                Ok(vec![Key::from_secret(secret)?])
            }
            Self::PublicKeys(_) => keys::from_pem(content),
        }
    }
}

/// The newest usable keys of one source.
pub(super) type Slot = ArcSwap<Vec<Key>>;

/// A key file that is watched.
#[derive(Debug)]
struct Watched {
    file: KeyFile,
    keys: Slot,
    /// What is wrong with its content now, for readiness; the keys before it stay in force.
    fault: ArcSwap<Option<String>>,
}

/// Every key in force, and what tokens must say.
pub struct KeyRing {
    rules: TokenRules,
    /// Given in the environment.
    fixed: Vec<Key>,
    files: Vec<Watched>,
    jwks: Option<Jwks>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRing")
    }
}

/// A token could not be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotVerified {
    /// It never can.
    Refused(TokenFault),
    /// The keys are not to be had at the moment, or too old to be sure.
    NotNow(&'static str),
}

impl KeyRing {
    /// A ring of keys that are given, files that are watched from now on, and a JWK set that is
    /// fetched. `files` are read already, so that a start with a wrong one fails.
    ///
    /// # Errors
    /// When files cannot be watched.
    pub fn start(
        rules: TokenRules,
        fixed: Vec<Key>,
        files: Vec<(KeyFile, Vec<Key>)>,
        jwks: Option<Jwks>,
        tasks: &mut Tasks,
    ) -> io::Result<Arc<Self>> {
        let files = files.into_iter().map(|(file, keys)| Watched {
            file,
            keys: ArcSwap::from_pointee(keys),
            fault: ArcSwap::from_pointee(None),
        });
        let ring = Arc::new(Self {
            rules,
            fixed,
            files: files.collect(),
            jwks,
        });
        if !ring.files.is_empty() {
            let paths = ring.files.iter().map(|one| one.file.path().to_owned());
            // Nothing is known of them, so that their keys are logged.
            let files = paths.map(|path| (path, Ok(Vec::new()))).collect();
            let files = tasks.enter(|| FileWatch::new(files))?;
            tasks.spawn("the watch over key files", watch(Arc::clone(&ring), files));
        }
        Ok(ring)
    }

    /// Verifies a token. Where it names a key that is not known, the JWK set is fetched first, if
    /// it was not just now.
    ///
    /// # Errors
    /// When it is refused, or the keys are not to be had.
    pub async fn verify(&self, token: &str) -> Result<VerifiedClaims, NotVerified> {
        let fault = match self.verify_now(token) {
            Err(NotVerified::Refused(fault)) => fault,
            done => return done,
        };
        let (TokenFault::UnknownKey, Some(jwks)) = (&fault, &self.jwks) else {
            return Err(NotVerified::Refused(fault));
        };
        let refetched = jwks.refetch().await;
        match (self.verify_now(token), refetched) {
            // It may be a key of later than the last look.
            (Err(NotVerified::Refused(TokenFault::UnknownKey)), Refetched::NotNow) => Err(
                NotVerified::NotNow("the token's key is not known, and cannot be asked for now"),
            ),
            (done, _) => done,
        }
    }

    fn verify_now(&self, token: &str) -> Result<VerifiedClaims, NotVerified> {
        let files: Vec<_> = self.files.iter().map(|file| file.keys.load()).collect();
        let fetched = self.jwks.as_ref().map(Jwks::keys);
        let keys = self
            .fixed
            .iter()
            .chain(files.iter().flat_map(|keys| keys.iter()))
            .chain(fetched.iter().flatten().flat_map(|keys| keys.iter()));
        let verified = verify(token, keys, &self.rules).map_err(NotVerified::Refused);
        let by_missing_key = matches!(
            verified,
            Err(NotVerified::Refused(
                TokenFault::UnknownKey | TokenFault::Algorithm | TokenFault::Signature
            ))
        );
        match fetched {
            Some(None) if by_missing_key => Err(NotVerified::NotNow(
                "the keys that tokens are verified with are not to be had",
            )),
            _ => verified,
        }
    }

    /// Why tokens cannot be verified, for readiness.
    pub fn outage(&self) -> Option<String> {
        self.jwks.as_ref().and_then(Jwks::outage)
    }

    /// What is wrong although tokens are verified still, for readiness.
    pub fn warnings(&self) -> Vec<String> {
        let files = self.files.iter().filter_map(|watched| {
            let fault = watched.fault.load();
            let fault = fault.as_ref().as_ref()?;
            let path = watched.file.path().display();
            Some(format!(
                "keys: {path} {fault}; the keys before it stay in force"
            ))
        });
        let jwks = self.jwks.as_ref().and_then(Jwks::warning);
        files.chain(jwks).collect()
    }
}

/// Takes what is in the files. A file that is broken, or half written, changes nothing.
async fn watch(ring: Arc<KeyRing>, mut files: FileWatch) {
    let mut seen: Vec<Content> = vec![Ok(Vec::new()); ring.files.len()];
    loop {
        let contents = files.changed().await;
        for ((watched, seen), content) in ring.files.iter().zip(&mut seen).zip(contents) {
            if seen != content {
                watched.take(content.as_ref());
                seen.clone_from(content);
            }
        }
    }
}

impl Watched {
    fn take(&self, content: Result<&Vec<u8>, &String>) {
        let path = self.file.path().display();
        let keys = content
            .map_err(String::clone)
            .and_then(|content| self.file.parse(content));
        match keys {
            Ok(keys) => {
                tracing::info!(%path, keys = keys.len(), "loaded keys");
                self.keys.store(Arc::new(keys));
                self.fault.store(Arc::new(None));
            }
            Err(fault) => {
                tracing::warn!(%path, fault, "failed to load keys; keeping the previous ones");
                self.fault.store(Arc::new(Some(fault)));
            }
        }
    }
}
