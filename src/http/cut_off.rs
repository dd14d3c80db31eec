//! Cutting off a stream that hyper writes.
//!
//! hyper does not poll a body while its client takes nothing, so the body cannot say that the
//! client has become too slow. Whatever polls hyper looks for itself: the answer, made inside that
//! task, leaves an [`AbortWatch`] here.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use crate::hub::{AbortWatch, CloseReason};

tokio::task_local! {
    static WATCH: RefCell<Option<AbortWatch>>;
}

/// Runs `future`, which polls a stream's answer; `None` when the stream is to be cut off. With it,
/// why the stream was ended, if it was.
pub(super) async fn watching<F: Future>(future: F) -> (Option<F::Output>, Option<CloseReason>) {
    WATCH
        .scope(RefCell::default(), async {
            let mut future = pin!(future);
            let output = poll_fn(|context| {
                if let Poll::Ready(output) = future.as_mut().poll(context) {
                    return Poll::Ready(Some(output));
                }
                let cut_off = WATCH.with(|watch| {
                    let watch = watch.borrow();
                    watch
                        .as_ref()
                        .is_some_and(|watch| watch.poll_aborted(context))
                });
                if cut_off {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                }
            })
            .await;
            let ended = WATCH.with(|watch| watch.borrow().as_ref()?.end_reason());
            (output, ended)
        })
        .await
}

/// Has the task that polls this answer look out for the end of its stream.
pub(super) fn leave_watch(watch: AbortWatch) {
    // Outside of `watching` there is nobody to tell.
    let _ = WATCH.try_with(|slot| slot.replace(Some(watch)));
}
