//! What the log says once a gateway listens.

use crate::config::{Access, BusConfig, Config};

use super::Addresses;

/// Logs where the gateway listens, and what an operator has to know of its configuration.
pub(super) fn announce(config: &Config, addresses: &Addresses) {
    let Addresses {
        data,
        proxied,
        admin,
    } = *addresses;
    let bus = match &config.bus {
        BusConfig::Embedded => "memory:".to_owned(),
        BusConfig::Redis(url) => url.address(),
    };
    tracing::info!(
        version = env!("VERSION_AND_REVISION"),
        %data,
        proxied = proxied.map(tracing::field::display),
        %admin,
        bus,
        shards = config.shards,
        max_connections = config.max_connections,
        "listening"
    );
    if let Some(warning) = config.warning() {
        tracing::warn!("{warning}");
    }
    match &config.access {
        Access::Open => tracing::warn!(
            "no access rules: all clients of the data listener, on loopback, may read and publish everything"
        ),
        Access::Rules(rules) if rules.tokens.is_none() => tracing::info!(
            "no key is configured: clients may read public channels and cannot publish over HTTP"
        ),
        Access::Rules(_) => {}
    }
    tracing::info!("the admin listener has no authentication: keep it inside your network");
    if data.ip().is_loopback() {
        tracing::info!("demo page: http://{data}/");
    }
}
