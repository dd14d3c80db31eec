//! Reads that the loss of the bus makes void.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::*;
use crate::continuity::{HistoryPage, Issued, Retention};
use crate::hub::{BusUpdate, HistoryRead, HistoryRequest, HubSettings, InterestUpdate};
use crate::protocol::{ControlForm, Framing, RetryRange};

const MINUTE: Duration = Duration::from_secs(60);

fn hub() -> (Rc<Hub>, mpsc::Receiver<HistoryRequest>) {
    let settings = HubSettings {
        heartbeat: MINUTE,
        retry: RetryRange::new(MINUTE, MINUTE).unwrap(),
        client_buffer_bytes: 1 << 20,
        slow_client: SlowClientPolicy::Close,
        lag_bound: MINUTE,
        tail_bytes: 1 << 20,
        max_connection_age: None,
    };
    let (history, asked) = mpsc::channel(8);
    (
        Hub::new(settings, Arc::default(), history, Arc::default()),
        asked,
    )
}

fn answer(request: HistoryRequest) {
    let last = EventId::new(100, 0);
    let page = HistoryPage {
        issued: Some(Issued { epoch: last, last }),
        now_ms: 100,
        retention: Retention::constant(MINUTE),
        evictable: false,
        oldest: None,
        from: EventId::ZERO,
        events: Vec::new(),
        complete: true,
        ended: None,
    };
    request.reply.send(Ok(Arc::new(page))).unwrap();
}

/// Redis may be another one by then.
#[tokio::test]
async fn what_was_read_before_the_bus_was_lost_is_read_again() {
    let (hub, mut asked) = hub();
    let request = StreamRequest {
        channels: vec!["a".parse().unwrap()],
        start: Start::Newest(3),
        control: ControlForm::Event,
        heartbeat: None,
        session: None,
        counted: 1,
        tells_live: false,
        is_whole: false,
        sees_status: true,
    };
    let (sender, mut told) = mpsc::channel::<InterestUpdate>(1);
    let bus = async {
        let generation = told.recv().await.unwrap().changes.remove(0).1.unwrap();
        let activate = || {
            hub.handle(BusUpdate::Active {
                channels: vec![("a".parse().unwrap(), generation)],
                position: Some(EventId::new(100, 0)),
            });
        };
        activate();
        let first = asked.recv().await.unwrap();
        hub.handle(BusUpdate::Lost);
        answer(first);
        tokio::task::yield_now().await;
        activate();
        let second = asked.recv().await.unwrap();
        assert_eq!(second.read, HistoryRead::Newest(3));
        answer(second);
        std::future::pending::<()>().await;
    };
    let local = LocalSet::new();
    let opened = local.run_until(async {
        tokio::select! {
            opened = hub.subscribe(&request, Framing::Plain, Vec::new, MINUTE) => opened,
            () = Rc::clone(&hub).tell_interest(0, sender) => panic!("the bus is there"),
            () = bus => panic!("it is there"),
        }
    });
    assert!(opened.await.is_ok());
}
