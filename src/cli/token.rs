//! The token that a command shows to a gateway.

use std::path::PathBuf;

use clap::Args;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use super::Failure;
use crate::config::secret;

/// The token that a command shows to a gateway.
#[derive(Args, Debug)]
pub(super) struct Token {
    /// Token for the gateway. Only as an environment variable: other users of the machine can read
    /// arguments
    #[arg(
        long,
        env = "FANFARE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        value_parser = secret,
        conflicts_with = "token_file"
    )]
    token: Option<SecretString>,
    /// File that contains the token. It is read again for every connection
    #[arg(long, env = "FANFARE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Token {
    /// What the header `Authorization` is to be, if there is a token.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|error| format!("{}: {error}", file.display()))?
                .into(),
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret().trim()))
            .map_err(|_| "the token is not what a header can hold")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
