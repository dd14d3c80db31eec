//! Storms: a line that comes again and again is written a few times, then summed up.
//!
//! What counts as the same line is where in the program it is written, whatever its fields say. So
//! there are only as many counts as there are such places, and the log grows by a few lines in
//! each window for each of them, whatever clients and publishers do.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{MissedTickBehavior, interval};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};

use super::TARGET;

/// Lines of one place are counted over this time.
const WINDOW: Duration = Duration::from_secs(10);

/// So many of them are written in it.
const WRITTEN_A_WINDOW: u64 = 5;

/// How often it is looked for windows that are over.
const SWEEP: Duration = Duration::from_secs(1);

/// What the summary quotes of a line, in bytes.
const MAX_QUOTE_BYTES: usize = 200;

/// The places that have written something lately.
#[derive(Debug, Default)]
pub(super) struct Storms(Mutex<HashMap<Identifier, Place>>);

#[derive(Debug)]
struct Place {
    since: Instant,
    lines: u64,
    level: Level,
    target: &'static str,
    /// What the first line that was not written said.
    quote: String,
}

/// What was not written.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    level: Level,
    target: &'static str,
    text: String,
    lines: u64,
}

impl Storms {
    /// Whether a line is to be written, and takes note of it.
    fn admits(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        // Who asks for more than what is written by default wants all of it.
        if metadata.target() == TARGET || *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = self.lock();
        let place = places.entry(metadata.callsite()).or_insert(Place {
            since: now,
            lines: 0,
            level: *metadata.level(),
            target: metadata.target(),
            quote: String::new(),
        });
        place.lines += 1;
        if place.lines == WRITTEN_A_WINDOW + 1 {
            event.record(&mut Quote(&mut place.quote));
        }
        place.lines <= WRITTEN_A_WINDOW
    }

    /// Forgets the places whose window is over, and returns what was not written of them.
    fn take_summaries(&self, now: Instant) -> Vec<Summary> {
        self.take_summaries_of(now, WINDOW)
    }

    /// Likewise, of windows that have lasted so long.
    fn take_summaries_of(&self, now: Instant, window: Duration) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.lock().retain(|_, place| {
            let lasted = now.duration_since(place.since);
            let is_over = lasted >= window;
            if is_over && place.lines > WRITTEN_A_WINDOW {
                let lines = place.lines - WRITTEN_A_WINDOW;
                let (quote, seconds) = (&place.quote, lasted.min(WINDOW).as_secs().max(1));
                summaries.push(Summary {
                    level: place.level,
                    target: place.target,
                    text: format!("{quote} … {lines} times more in the last {seconds} s"),
                    lines,
                });
            }
            !is_over
        });
        summaries
    }

    /// Writes summaries, for ever.
    pub(super) async fn run(&self) {
        let mut sweeps = interval(SWEEP);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweeps.tick().await;
            for summary in self.take_summaries(Instant::now()) {
                summary.write();
            }
        }
    }

    /// Writes what is still to be summed up: nothing else will be.
    pub(super) fn finish(&self) {
        for summary in self.take_summaries_of(Instant::now(), Duration::ZERO) {
            summary.write();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Place>> {
        self.0.lock()
    }
}

impl Summary {
    fn write(&self) {
        let Self {
            level,
            target: of,
            text,
            lines,
        } = self;
        // The level of an event is a constant of its place.
        match *level {
            Level::ERROR => tracing::error!(target: TARGET, of, lines, "{text}"),
            Level::WARN => tracing::warn!(target: TARGET, of, lines, "{text}"),
            _ => tracing::info!(target: TARGET, of, lines, "{text}"),
        }
    }
}

/// Takes a line's message, cut short.
struct Quote<'a>(&'a mut String);

impl Visit for Quote<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
            let end = self.0.floor_char_boundary(MAX_QUOTE_BYTES);
            self.0.truncate(end);
        }
    }
}

/// Keeps lines of a storm out of the log.
pub(super) struct Calm(pub(super) Arc<Storms>);

impl<S: Subscriber> Filter<S> for Calm {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // `tracing-subscriber` asserts that an event which a filter drops was not enabled for good.
        if metadata.is_event() {
            Interest::sometimes()
        } else {
            Interest::always()
        }
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admits(event, Instant::now())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    /// Where the lines of a test go.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> Vec<String> {
            let bytes = std::mem::take(&mut *self.0.lock());
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    fn subscribe() -> (Arc<Storms>, Lines, tracing::subscriber::DefaultGuard) {
        let (storms, lines) = (Arc::new(Storms::default()), Lines::default());
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let layer = layer.with_filter(Calm(Arc::clone(&storms)));
        let subscriber = tracing_subscriber::registry().with(layer);
        let guard = tracing::subscriber::set_default(subscriber);
        (storms, lines, guard)
    }

    #[test]
    fn a_storm_is_a_few_lines_and_a_summary_once_it_is_over() {
        let (storms, lines, _guard) = subscribe();
        for number in 0..1239 {
            tracing::warn!(number, "the same");
        }
        tracing::warn!("another");
        let written = lines.take();
        assert_eq!(written.len(), 6, "{written:?}");
        assert!(written[5].ends_with("another"), "{written:?}");
        assert!(storms.take_summaries(Instant::now()).is_empty());

        let summaries = storms.take_summaries(Instant::now() + WINDOW);
        assert_eq!(summaries.len(), 1, "{summaries:?}");
        assert_eq!(summaries[0].lines, 1234);
        summaries[0].write();
        let written = lines.take();
        let text = "the same … 1234 times more in the last 10 s";
        assert!(
            written[0].contains(text) && written[0].contains("WARN"),
            "{written:?}"
        );
        assert!(storms.lock().is_empty());

        // The next one is a line like any other.
        tracing::warn!("the same");
        assert_eq!(lines.take().len(), 1);
    }

    #[test]
    fn what_is_left_at_the_end_is_summed_up_then() {
        let (storms, lines, _guard) = subscribe();
        for _ in 0..12 {
            tracing::error!("the last words");
        }
        lines.take();
        storms.finish();
        let written = lines.take();
        assert_eq!(written.len(), 1, "{written:?}");
        assert!(written[0].contains("the last words … 7 times more in the last 1 s"));
        assert!(storms.lock().is_empty());
    }

    #[test]
    fn lines_that_come_now_and_then_are_all_written() {
        let (storms, lines, _guard) = subscribe();
        for _ in 0..20 {
            tracing::info!("now and then");
            // As if a window had passed.
            assert!(storms.take_summaries(Instant::now() + WINDOW).is_empty());
        }
        assert_eq!(lines.take().len(), 20);
    }

    #[test]
    fn every_debug_line_is_written() {
        let (storms, lines, _guard) = subscribe();
        for _ in 0..20 {
            tracing::debug!("again");
        }
        assert!(storms.lock().is_empty());
        // The test's subscriber writes what is not filtered.
        assert_eq!(lines.take().len(), 20);
    }

    #[test]
    fn what_is_quoted_of_a_line_is_bounded() {
        let (storms, _lines, _guard) = subscribe();
        let long = "é".repeat(10_000);
        for _ in 0..7 {
            tracing::info!("{long}");
        }
        let summary = storms.take_summaries(Instant::now() + WINDOW).remove(0);
        assert!(summary.text.len() < MAX_QUOTE_BYTES + 60 && summary.lines == 2);
    }
}
