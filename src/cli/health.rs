//! `fanfare health`: for health checks where there is neither a shell nor curl.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::{Failure, cause, client, runtime};

/// Below the time that health checks are usually given.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Health {
    /// Address of the gateway's admin listener
    #[arg(
        long,
        env = "FANFARE_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9080"
    )]
    admin_listen: SocketAddr,

    /// Check only that the gateway answers, not that it is ready for streams
    #[arg(long)]
    live: bool,
}

impl Health {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let path = if self.live { "livez" } else { "readyz" };
        let url = format!("http://{}/{path}", reachable(self.admin_listen));
        let answer = runtime()?.block_on(ask(&url));
        let (status, text) = answer.map_err(|error| {
            let cause = cause(&error.without_url());
            format!("{url} does not answer: {cause}")
        })?;
        if !status.is_success() {
            return Err(format!("{status}: {text}").into());
        }
        writeln!(std::io::stdout(), "{}", text.trim_end())?;
        Ok(())
    }
}

async fn ask(url: &str) -> reqwest::Result<(reqwest::StatusCode, String)> {
    // The gateway is on this machine, whatever http_proxy says.
    let client = client(url).timeout(TIMEOUT).no_proxy().build()?;
    let response = client.get(url).send().await?;
    Ok((response.status(), response.text().await?))
}

/// Where an address that stands for all of the machine's is reached from the machine itself.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => {}
        IpAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9080", "127.0.0.1:9080"),
            ("[::]:9080", "[::1]:9080"),
            ("10.1.2.3:9080", "10.1.2.3:9080"),
        ] {
            let listen = listen.parse().unwrap();
            assert_eq!(reachable(listen).to_string(), asked);
        }
    }
}
