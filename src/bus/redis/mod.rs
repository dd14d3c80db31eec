//! The Redis bus: one subscriber connection under a supervisor, and a pool for commands.
//!
//! [`supervisor`] keeps a connection to the server that the URL, or its [Sentinels](sentinel), name.
//! Its life is a [`session`]: it has the wanted channels [subscribed](subscriptions), hears of
//! revocations ([`control`]), sends [`probe`]s, takes what arrives from its [queue](push_queue), reads
//! what was missed ([`backfill`]) and has the [`driver`] deliver it to the shards. [`peers`], [`publish`] and
//! [`history`] serve the HTTP edge and the shards over the [`pool`]. [`library`] is the part that
//! runs inside Redis, [`keeping`] what is known of it. [`tally`] has replicas count together.

mod backfill;
mod connect;
mod control;
mod driver;
mod functions;
mod history;
mod keeping;
pub mod library;
mod memory;
mod once;
pub(super) mod peers;
mod place;
mod pool;
mod probe;
mod publish;
mod push_queue;
mod sentinel;
mod session;
mod session_end;
mod subscriptions;
mod supervisor;
mod tally;
mod tickets;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use self::backfill::ReadBudget;
use self::control::Control;
use self::driver::Driver;
use self::history::{HistoryReader, HistoryService};
use self::keeping::Keeping;
use self::library::LibrarySettings;
use self::place::Place;
use self::pool::{CommandPool, POOL_SIZE};
use self::session::SubscriberState;
use self::supervisor::{Locator, Supervisor};
use super::routing::Routing;
use super::{BusHealth, Inputs, PeerSender, Publisher, Services, Tally, TicketStore};
use crate::config::{Config, RedisSource, RedisUrl};
use crate::continuity::Retention;
use crate::tasks::Tasks;
use crate::telemetry::{BusMetrics, DownCause};
use crate::warnings::Warnings;

pub(crate) use pool::POOL_PATIENCE;
pub(super) use publish::RedisPublisher;
pub use publish::publish_once;
pub(super) use tally::RedisTally;
pub(super) use tickets::RedisTickets;

/// Starts the bus. Redis need not be there yet.
pub(super) fn start(
    config: &Config,
    (url, source): (&RedisUrl, &RedisSource),
    tasks: &mut Tasks,
    routing: Routing,
    inputs: Inputs,
    metrics: BusMetrics,
    warnings: &Warnings,
) -> Result<Services, redis::RedisError> {
    let (health_sender, health) = watch::channel(BusHealth::Down {
        cause: DownCause::Starting,
        reason: "not connected yet".into(),
    });
    metrics.note_up(Some(DownCause::Starting));
    let (hears, heard) = super::peer_queue::queue();
    let pool = CommandPool::default();
    let place = Place::watch(url, source, &pool, warnings, tasks)?;
    let locator = Locator::new(place, config.max_replication_lag, tasks, &pool)?;
    let keeping = Keeping::new(
        LibrarySettings::from(config),
        metrics.clone(),
        warnings.clone(),
    );
    let memory = memory::watch(pool.clone(), warnings.clone(), metrics.clone());
    tasks.spawn("the watch over Redis' memory", memory);
    let support = Arc::clone(&keeping.support);
    let (notes, reads) = mpsc::channel(POOL_SIZE);
    let reader = HistoryReader::new(&config.prefix, config.max_event_bytes, &metrics);
    let histories = HistoryService {
        pool: pool.clone(),
        reader: reader.clone(),
        support: Arc::clone(&support),
        notes,
    };
    let state = SubscriberState {
        // `$`: no client can name it. Random: no two replicas share it.
        probe_channel: format!("{}$probe.{:016x}", config.prefix, fastrand::u64(..)),
        control: Control::new(&config.prefix, inputs.revocations),
        driver: Driver::new(
            config.prefix.clone(),
            config.max_event_bytes,
            config.max_replication_lag,
            Retention::constant(config.history_ttl),
            routing,
            metrics,
        ),
        keeping,
        reader,
        read_budget: ReadBudget::default(),
        updates: inputs.updates,
        reads,
        health: health_sender,
        hears,
    };
    let supervisor = Supervisor::new(locator, pool.clone(), state);
    tasks.spawn("the subscription", supervisor.run());
    tasks.spawn("the reader of histories", histories.run(inputs.asked));
    let sender = peers::RedisPeers::new(pool.clone(), &config.prefix);
    let tally = Tally(RedisTally::new(pool.clone(), &config.prefix));
    let publisher = RedisPublisher::new(pool, &config.prefix, support, tasks.control());
    Ok(Services {
        tickets: TicketStore::Redis(RedisTickets::new(publisher.clone(), &config.prefix)),
        publisher: Publisher::Redis(publisher),
        health,
        tally: Some(tally),
        peers: PeerSender::Redis(sender),
        heard,
    })
}
