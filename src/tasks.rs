//! Tasks of the control runtime that live as long as the process.
//!
//! A gateway that has lost one of them would go on looking healthy: without the bus's supervisor, say, it
//! would be ready and deaf. So the end of any of them is that of the process, as the end of a shard is.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// A task that ought to be there has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnded {
    /// It has returned.
    #[error("{0} has ended")]
    Returned(&'static str),
    /// It has panicked; the log has where.
    #[error("{0} has panicked")]
    Panicked(&'static str),
}

/// The tasks; they are cut off when this is dropped.
#[derive(Debug)]
pub struct Tasks {
    control: Handle,
    set: JoinSet<TaskEnded>,
}

impl Tasks {
    /// None yet, on this runtime.
    pub fn on(control: &Handle) -> Self {
        Self {
            control: control.clone(),
            set: JoinSet::new(),
        }
    }

    /// The runtime that they are on.
    pub fn control(&self) -> &Handle {
        &self.control
    }

    /// Runs what needs a runtime around it, such as making a timer.
    pub fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.control.enter();
        make()
    }

    /// Begins one. `name`: for the log.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let watched = async move {
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(()) => TaskEnded::Returned(name),
                Err(_) => TaskEnded::Panicked(name),
            }
        };
        self.set.spawn_on(watched, &self.control);
    }

    /// Waits for the first that ends, for ever where all go on.
    pub async fn ended(&mut self) -> TaskEnded {
        match self.set.join_next().await {
            Some(Ok(ended)) => ended,
            // None was begun, or the runtime is being shut down.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_is_told() {
        let mut tasks = Tasks::on(&Handle::current());
        tasks.spawn("one that goes on", std::future::pending());
        assert_eq!(tasks.ended().now_or_never(), None);
        tasks.spawn("one that ends", async {});
        let ended = tasks.ended().await;
        assert_eq!(ended, TaskEnded::Returned("one that ends"));
        tasks.spawn("one that panics", async { panic!("as it should") });
        let ended = tasks.ended().await;
        assert_eq!(ended, TaskEnded::Panicked("one that panics"));
    }
}
