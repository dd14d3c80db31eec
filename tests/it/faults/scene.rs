//! What most faults strike: a replica behind Redis, its clients, and a publisher under load.

use crate::faults::{PAUSE, VARIABLES, clients_of_two_channels};
use crate::support::client::{Addresses, Client};
use crate::support::oracle::{Journal, Load, Publisher};
use crate::support::{Gateway, Redis};

pub(crate) struct Scene {
    pub(crate) redis: Redis,
    pub(crate) gateway: Gateway,
    /// Of two channels: see [`clients_of_two_channels`].
    pub(crate) clients: Vec<Client>,
    /// What was published.
    pub(crate) journal: Journal,
    /// Publishes to both channels until it is stopped.
    pub(crate) load: Load,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        let redis = Redis::start().await;
        let gateway = Gateway::behind(&redis, VARIABLES).await;
        Self::of(redis, gateway).await
    }

    /// With a Redis and a gateway of the test's own.
    pub(crate) async fn of(redis: Redis, gateway: Gateway) -> Self {
        let clients = clients_of_two_channels(&Addresses::of(&[&gateway])).await;
        let journal = Journal::default();
        let load = Publisher::new(&journal, "p", &redis.url()).load(&["a", "b"], PAUSE);
        Self {
            redis,
            gateway,
            clients,
            journal,
            load,
        }
    }
}
